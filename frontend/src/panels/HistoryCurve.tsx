import { useMemo } from "preact/hooks";

import { Curve } from "../parts/Curve";
import { inWords } from "../state/export";
import { historyCounts, historySeries } from "../state/history";
import { language, status, words } from "../state/store";
import { length } from "../text/format";
import { colourOf } from "../viewer/colours";

/** More lines than these cannot be told apart; the totals name all. */
const MOST_LINES = 6;

/** Objects found over time, and how many they are in all. */
export function HistoryCurve() {
  const t = words.value;
  const series = historySeries.value;
  const counts = historyCounts.value;
  const classes = status.value?.classes ?? [];
  const bins = counts[0]?.values.length ?? 0;
  const x = useMemo(() => Array.from({ length: bins }, (_, at) => (series ? series.from + (at + 0.5) * series.step : at)), [series, bins]);
  const lines = useMemo(
    () => counts.slice(0, MOST_LINES).map(({ name, values }) => ({ name, values, colour: colourOf(Math.max(classes.indexOf(name), 0)) })),
    [counts, classes],
  );
  const totals = counts.map(({ name, total }) => [name, total] as const);
  return (
    <section class="panel box" aria-labelledby="curve-title">
      <h2 id="curve-title">{t.objectsOverTime}</h2>
      {counts.length === 0 || !series ? (
        <p class="muted">{t.historyNone}</p>
      ) : (
        <>
          <Curve label={`${t.objectsOverTime}: ${inWords(totals, language.value)}`} x={x} of="time" xName={t.time} lines={lines} />
          <p class="small" id="history-totals">
            <b>{t.totals}:</b> {inWords(totals, language.value)}
            <span class="muted"> · {t.perSpan(length(series.step, language.value))}</span>
          </p>
        </>
      )}
    </section>
  );
}
