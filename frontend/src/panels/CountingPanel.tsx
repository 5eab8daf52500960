import type { Counts } from "../api/types";
import { Icon } from "../parts/Icon";
import * as cameras from "../state/cameras";
import { language, mayChange, words } from "../state/store";
import { when } from "../text/format";
import type { Mark } from "../viewer/marks";

/** Lines and zones of the camera that is watched: drawing, names, and how many went in and out. */
export function CountingPanel() {
  const t = words.value;
  const watched = cameras.watched.value;
  const pen = cameras.pen.value;
  const { lines, zones } = cameras.wanted.value;
  const counts = cameras.liveCounts.value;
  const may = mayChange.value || watched?.kind === "own";
  const since = cameras.countedSince.value;
  return (
    <section class="panel" aria-labelledby="counting-title">
      <div class="panel-head">
        <h2 id="counting-title">{t.counting}</h2>
        {may && lines.length + zones.length > 0 && (
          <button class="link" onClick={() => void cameras.resetCounts()}>
            {t.resetCounts}
          </button>
        )}
      </div>
      {cameras.countingProblem.value && <p class="bad small">{cameras.countingProblem.value}</p>}
      {may && !pen && (
        <div class="buttons">
          <button class="button" disabled={!cameras.liveFrame.value} onClick={() => begin("line")}>
            {t.drawLine}
          </button>
          <button class="button" disabled={!cameras.liveFrame.value} onClick={() => begin("zone")}>
            {t.drawZone}
          </button>
        </div>
      )}
      {pen && (
        <>
          <p class="small" role="status">
            {pen.kind === "line" ? t.drawLineHow : t.drawZoneHow}
          </p>
          <div class="buttons">
            {pen.kind === "zone" && (
              <button class="button primary" disabled={pen.points.length < 3} onClick={cameras.finishZone}>
                {t.finishZone}
              </button>
            )}
            <button class="button" onClick={() => cameras.draw(null)}>
              {t.cancel}
            </button>
          </div>
        </>
      )}
      {!pen && lines.length + zones.length === 0 && <p class="muted small">{t.countingNone}</p>}
      {lines.map(({ name }) => (
        <Counter key={`line ${name}`} kind="line" name={name} may={may} rows={lineRows(counts, name)} heads={[t.countIn, t.countOut]} />
      ))}
      {zones.map(({ name }) => (
        <Counter key={`zone ${name}`} kind="zone" name={name} may={may} rows={zoneRows(counts, name)} heads={[t.countIn, t.countOut, t.countNow]} />
      ))}
      {since !== null && lines.length + zones.length > 0 && <p class="muted small">{t.countedSince(when(since, language.value))}</p>}
    </section>
  );
}

/** The keyboard goes to the picture: arrows move the pen there. */
function begin(kind: Mark["kind"]): void {
  cameras.draw(kind);
  document.querySelector<HTMLElement>(".viewer")?.focus({ preventScroll: true });
}

type Row = readonly [string, ...number[]];

function lineRows(counts: Counts, name: string): readonly Row[] {
  return Object.entries(counts.lines[name] ?? {}).map(([kind, one]) => [kind, one.in, one.out]);
}

function zoneRows(counts: Counts, name: string): readonly Row[] {
  return Object.entries(counts.zones[name] ?? {}).map(([kind, one]) => [kind, one.in, one.out, one.now]);
}

interface CounterProps {
  kind: Mark["kind"];
  name: string;
  may: boolean;
  rows: readonly Row[];
  heads: readonly string[];
}

function Counter({ kind, name, may, rows, heads }: CounterProps) {
  const t = words.value;
  return (
    <div class="counter" role="group" aria-label={name}>
      <div class="counter-head">
        <input
          class="input"
          aria-label={t.nameOf(name)}
          value={name}
          maxLength={64}
          readOnly={!may}
          onChange={(event) => {
            cameras.rename(kind, name, event.currentTarget.value.trim());
            event.currentTarget.value = name; // until the server has taken it
          }}
        />
        {may && (
          <button class="tool small" title={t.delete} aria-label={t.removeNamed(name)} onClick={() => cameras.removeMark(kind, name)}>
            <Icon name="trash" />
          </button>
        )}
      </div>
      <table class="table counts">
        <thead>
          <tr>
            <th>{t.classOfBox}</th>
            {heads.map((head) => (
              <th key={head} class="n">
                {head}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.length === 0 ? (
            <tr>
              <td class="muted" colSpan={heads.length + 1}>
                {t.nobodyYet}
              </td>
            </tr>
          ) : (
            rows.map(([of, ...numbers]) => (
              <tr key={of}>
                <td>{of}</td>
                {numbers.map((number, at) => (
                  <td key={heads[at]} class="n">
                    {number}
                  </td>
                ))}
              </tr>
            ))
          )}
        </tbody>
      </table>
    </div>
  );
}
