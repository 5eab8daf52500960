import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import { language, theme } from "../state/store";
import { LOCALES } from "../text/format";

export interface Line {
  readonly name: string;
  readonly colour: string;
  readonly values: readonly (number | null)[];
  readonly dashed?: boolean;
}

interface Props {
  /** Said to screen readers: what the curve is and how it went. */
  label: string;
  /** Seconds since 1970, or rounds. */
  x: readonly number[];
  of: "time" | "round";
  /** Over the x-values of the legend. */
  xName: string;
  lines: readonly Line[];
  /** The scale begins near the least value, in tenths, and not at 0. */
  near?: boolean;
  height?: number;
  digits?: number;
}

const WIDTH = 400;
const WHOLE = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));
const [MINUTE, HOUR, DAY] = [60, 3600, 86_400];
const SECONDS = [
  ...[1, 2, 5, 10, 30],
  ...[1, 2, 5, 10, 30].map((minutes) => minutes * MINUTE),
  ...[1, 2, 3, 6, 12].map((hours) => hours * HOUR),
  ...[1, 2, 5, 10, 20, 50, 100].map((days) => days * DAY),
];

/** Values over time or rounds. */
export function Curve(props: Props) {
  const { x, lines, of, height = 180 } = props;
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const look = `${theme.value} ${language.value} ${of} ${props.xName} ${height} ${lines.map((line) => `${line.name} ${line.colour}`).join("\n")}`;
  const data = [x, ...lines.map(({ values }) => values)] as unknown as uPlot.AlignedData;
  const latest = useRef(data);
  latest.current = data;
  useLayoutEffect(() => {
    const make = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(props, host.current!), latest.current, host.current!);
    };
    make();
    // The system's colours may change while the page is open.
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    const sized = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(host.current!.clientWidth, 1), height }));
    sized.observe(host.current!);
    return () => {
      dark.removeEventListener("change", make);
      sized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [look]);
  useEffect(() => plot.current?.setData(latest.current), [x, lines]);
  return <div class="curve" role="img" aria-label={props.label} ref={host} style={{ minHeight: `${height}px` }} />;
}

function options({ of, xName, lines, near = false, height = 180, digits = 0 }: Props, host: HTMLElement): uPlot.Options {
  const style = getComputedStyle(host);
  // Colours that can be told apart on photographs are too light for white paper.
  const inked = (line: Line) => (style.colorScheme === "dark" ? line.colour : `color-mix(in srgb, ${line.colour} 70%, black)`);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const locale = LOCALES[language.peek()];
  const axis: uPlot.Axis = {
    stroke: colour("--muted"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: `12px ${style.fontFamily}`,
  };
  const time = (seconds: number, span: number) =>
    new Date(1000 * seconds).toLocaleString(locale, {
      ...(span > DAY ? { day: "numeric", month: "short" } : {}),
      ...(span < 4 * DAY ? { hour: "2-digit", minute: "2-digit" } : {}),
      ...(span < 15 * MINUTE ? { second: "2-digit" } : {}),
    });
  const xValue = (value: number, span: number) => (of === "time" ? time(value, span) : String(value));
  return {
    width: host.clientWidth || WIDTH,
    height,
    scales: {
      x: { time: of === "time" },
      y: { range: (_, least, most) => (near ? tenths(least ?? 0, most ?? 1) : [0, Math.max(1, (most ?? 0) * 1.08)]) },
    },
    axes: [
      {
        ...axis,
        size: 30,
        space: 70,
        incrs: of === "round" ? WHOLE : SECONDS,
        values: (plot, splits) => {
          const { min = 0, max = 0 } = plot.scales["x"]!;
          return splits.map((value) => xValue(value, (max ?? 0) - (min ?? 0)));
        },
      },
      {
        ...axis,
        size: 46,
        space: height < 150 ? 20 : 34,
        incrs: near ? [0.05, 0.1, 0.2, 0.5] : WHOLE,
        values: (_, splits) => splits.map((value) => value.toFixed(near ? 2 : 0)),
      },
    ],
    series: [
      { label: xName, value: (_, value) => (value === null ? "–" : xValue(value, DAY)) },
      ...lines.map(
        (line): uPlot.Series => ({
          label: line.name,
          stroke: inked(line),
          width: 2,
          ...(line.dashed ? { dash: [5, 4] } : {}),
          points: { show: of === "round", size: 7 },
          value: (_, value) => (value === null || value === undefined ? "–" : value.toFixed(digits)),
        }),
      ),
    ],
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    legend: { live: true },
  };
}

/** From the tenth below to the tenth above, and two of them at least. */
function tenths(least: number, most: number): [number, number] {
  const from = Math.max(Math.floor(least * 10 - 0.2) / 10, 0);
  return [from, Math.max(Math.ceil(most * 10 + 0.2) / 10, from + 0.2)];
}
