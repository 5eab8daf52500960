import { HistoryCurve } from "./HistoryCurve";
import { HistorySearch } from "./HistorySearch";
import { HistoryTable } from "./HistoryTable";

/** What was found over time: search, curve, list. */
export function HistoryView() {
  return (
    <div class="sheet">
      <HistorySearch />
      <HistoryCurve />
      <HistoryTable />
    </div>
  );
}
