import { Segments, Select } from "../parts/Choice";
import * as history from "../state/history";
import { words } from "../state/store";
import { sourceName } from "../text/format";

/** Class, source and time that are searched for; acts at once. */
export function HistorySearch() {
  const t = words.value;
  const names: Record<history.Span, string> = {
    "1": t.lastHour,
    "24": t.lastDay,
    "168": t.lastWeek,
    "720": t.lastMonth,
    own: t.ownTime,
  };
  return (
    <section class="panel box" aria-labelledby="history-title">
      <h2 id="history-title">{t.history}</h2>
      <div class="search">
        <Select
          label={t.classOfBox}
          value={history.historyClass.value}
          options={[["", t.anyClass], ...history.historyClasses.value.map((name) => [name, name] as const)]}
          onChange={(value) => (history.historyClass.value = value)}
        />
        <Select
          label={t.reviewSource}
          value={history.historySource.value}
          options={[["", t.reviewAnySource], ...history.historySources.value.map((source) => [source, sourceName(source, t)] as const)]}
          onChange={(value) => (history.historySource.value = value)}
        />
        <div class="field">
          <span>{t.time}</span>
          <Segments
            label={t.time}
            value={history.historySpan.value}
            options={history.SPANS.map((span) => [span, names[span]] as const)}
            onChange={(value) => (history.historySpan.value = value)}
          />
        </div>
        {history.historySpan.value === "own" && (
          <>
            <Time label={t.from} value={history.historyFrom.value} onChange={(value) => (history.historyFrom.value = value)} />
            <Time label={t.until} value={history.historyUntil.value} onChange={(value) => (history.historyUntil.value = value)} />
          </>
        )}
      </div>
    </section>
  );
}

function Time({ label, value, onChange }: { label: string; value: string; onChange(value: string): void }) {
  return (
    <label class="field">
      <span>{label}</span>
      <input class="input" type="datetime-local" value={value} onChange={(event) => onChange(event.currentTarget.value)} />
    </label>
  );
}
