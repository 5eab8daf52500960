import { useMemo } from "preact/hooks";

import { Curve } from "../parts/Curve";
import { samples } from "../state/cameras";
import { status, words } from "../state/store";
import { colourOf } from "../viewer/colours";

const MOST_LINES = 5;
const FEWEST = 2;

/** How many of each class the camera saw in the last minutes. */
export function LiveCurve() {
  const t = words.value;
  const all = samples.value;
  const classes = status.value?.classes ?? [];
  const x = useMemo(() => all.map(({ time }) => time), [all]);
  const lines = useMemo(() => {
    const totals = new Map<string, number>();
    for (const { counts } of all) for (const [name, number] of counts) totals.set(name, (totals.get(name) ?? 0) + number);
    const names = [...totals].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).map(([name]) => name);
    return names.slice(0, MOST_LINES).map((name) => ({
      name,
      colour: colourOf(Math.max(classes.indexOf(name), 0)),
      values: all.map(({ counts }) => counts.get(name) ?? 0),
    }));
  }, [all, classes]);
  if (all.length < FEWEST || lines.length === 0) return null;
  return (
    <section class="live-curve" aria-label={t.countsOverTime}>
      <Curve label={t.countsOverTime} x={x} of="time" xName={t.time} lines={lines} height={120} />
    </section>
  );
}
