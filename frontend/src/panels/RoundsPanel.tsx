import { useMemo } from "preact/hooks";

import { Curve } from "../parts/Curve";
import { ofLastRun, type Rounds } from "../state/federation";
import { language, words } from "../state/store";
import { length, when } from "../text/format";

/** How good the model was on this site's own pictures, round by round. */
export function RoundsPanel({ rounds }: { rounds: Rounds }) {
  const t = words.value;
  const shown = useMemo(() => ofLastRun(rounds), [rounds]);
  const x = useMemo(() => shown.map(({ round }) => round), [shown]);
  const lines = useMemo(
    () => [
      { name: t.mapBefore, colour: "#8793a1", dashed: true, values: shown.map(({ before }) => before) },
      { name: t.mapAfter, colour: "#1f8fdd", values: shown.map(({ after }) => after) },
    ],
    [shown, t],
  );
  const last = shown[shown.length - 1];
  return (
    <section class="panel box" aria-labelledby="rounds-title">
      <h2 id="rounds-title">{t.roundsTitle}</h2>
      <p class="muted small">{t.roundsHow}</p>
      {!last ? (
        <p class="muted">{t.noRoundYet}</p>
      ) : (
        <>
          <Curve label={t.roundsCurve(shown.length, last.after)} x={x} of="round" xName={t.round} lines={lines} near digits={3} height={200} />
          <details>
            <summary>{t.asTable}</summary>
            <div class="table-scroll" tabIndex={0} role="region" aria-label={t.roundsTitle}>
              <table class="table">
                <thead>
                  <tr>
                    <th>{t.run}</th>
                    <th class="n">{t.round}</th>
                    <th>{t.time}</th>
                    <th class="n">{t.mapBefore}</th>
                    <th class="n">{t.mapAfter}</th>
                    <th class="n">{t.trainingTime}</th>
                  </tr>
                </thead>
                <tbody>
                  {[...rounds].reverse().map((round) => (
                    <tr key={round.time}>
                      <td>{round.run}</td>
                      <td class="n">{round.round}</td>
                      <td>{when(round.time, language.value)}</td>
                      <td class="n">{round.before?.toFixed(3) ?? t.unknown}</td>
                      <td class="n">{round.after?.toFixed(3) ?? t.unknown}</td>
                      <td class="n">{length(round.seconds, language.value)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </details>
        </>
      )}
    </section>
  );
}
