import type { ComponentChildren } from "preact";

import type { Member } from "../api/types";
import { ofLastRun, takePart } from "../state/federation";
import { connection, language, mayChange, words } from "../state/store";
import { length, number, size, when } from "../text/format";

/** How it goes, in a sentence, a bar and four figures; and the button that ends or begins taking part. */
export function FederationNow({ node }: { node: Member }) {
  const t = words.value;
  const spoken = language.value;
  const rounds = ofLastRun(node.rounds_done);
  const first = rounds.find(({ before }) => before !== null)?.before ?? null;
  const last = rounds.findLast(({ after }) => after !== null)?.after ?? null;
  const state = node.paused ? "paused" : node.not_ready ? "waiting" : node.training ? "training" : "ready";
  return (
    <section class="panel box" aria-labelledby="node-title">
      <div class="panel-head">
        <h1 id="node-title">{node.node_id}</h1>
        <span class="state" data-state={state} role="status">
          {{ paused: t.nodePaused, waiting: t.nodeNotReady, training: t.nodeTraining, ready: t.nodeReady }[state]}
        </span>
        {(mayChange.value || connection.value === "none") && (
          <button class={node.paused ? "button primary" : "button"} onClick={() => void takePart(node.paused)}>
            {node.paused ? t.resume : t.pause}
          </button>
        )}
      </div>
      {node.not_ready && <p class="bad">{t.notReadyBecause(node.not_ready)}</p>}
      {node.paused && <p>{t.pausedMeans}</p>}
      <p class="headline">{headline(node)}</p>
      {node.rounds !== null && node.round !== null && (
        <progress aria-label={t.roundOf(node.round, node.rounds)} max={node.rounds} value={shareOf(node)} />
      )}
      <div class="tiles">
        <Tile name={t.map50}>
          <b>{last?.toFixed(3) ?? t.unknown}</b>
          <span>{first !== null && last !== null ? t.mapChange(first, last) : t.mapNotYet}</span>
        </Tile>
        <Tile name={t.trainingPictures}>
          <b>{number(node.pictures, spoken)}</b>
          <span>{t.ofThemCorrected(node.corrections)}</span>
        </Tile>
        <Tile name={t.bytesToday}>
          <b>
            ↓ {size(node.bytes_today["down"] ?? 0, spoken)} · ↑ {size(node.bytes_today["up"] ?? 0, spoken)}
          </b>
          <span>{t.noPicturesSent}</span>
        </Tile>
        <Tile name={t.trainingTime}>
          <b>{length(node.training_seconds, spoken)}</b>
          <span>{t.sinceStart}</span>
        </Tile>
      </div>
      <p class="muted small">
        {t.coordinatorAt(node.coordinator || t.unknown)}{" "}
        {node.last_seen === null ? t.neverHeard : t.lastHeard(when(node.last_seen, spoken))}
      </p>
    </section>
  );
}

function Tile({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div class="tile">
      <h3>{name}</h3>
      {children}
    </div>
  );
}

function headline(node: Member): string {
  const t = words.value;
  if (node.round === null || node.rounds === null) return t.noRoundYet;
  const round = t.roundOf(node.round, node.rounds);
  if (!node.training) return `${round} · ${t.waitsForNext}`;
  const epoch = node.epoch !== null && node.epochs !== null ? ` · ${t.epochOf(node.epoch, node.epochs)}` : "";
  const left = node.seconds_left !== null ? ` · ${t.timeLeft(length(node.seconds_left, language.value))}` : "";
  return `${round}${epoch}${left}`;
}

/** Rounds that are done, and the share of the present one. */
function shareOf({ round, training, epoch, epochs }: Member): number {
  if (round === null) return 0;
  if (!training) return round;
  return round - 1 + (epoch !== null && epochs ? (epoch - 1) / epochs : 0);
}
