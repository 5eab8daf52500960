import { useState } from "preact/hooks";

import type { Sent } from "../api/types";
import { sent } from "../state/federation";
import { language, words } from "../state/store";
import { number, size, when } from "../text/format";

/** Every message that left this site, from the node's log that cannot be changed unseen. */
export function SentTable() {
  const t = words.value;
  const [open, setOpen] = useState<string | null>(null);
  const entries = sent.value;
  return (
    <section class="panel box" aria-labelledby="sent-title">
      <h2 id="sent-title">{t.sentTitle}</h2>
      <p class="muted small">{t.sentHow}</p>
      {entries.length === 0 ? (
        <p class="muted">{t.sentNothing}</p>
      ) : (
        <div class="table-scroll tall" tabIndex={0} role="region" aria-label={t.sentTitle}>
          <table class="table">
            <thead>
              <tr>
                <th>{t.time}</th>
                <th>{t.sentKind}</th>
                <th class="n">{t.sentBytes}</th>
                <th>{t.sentArrays}</th>
                <th>SHA-256</th>
              </tr>
            </thead>
            <tbody>
              {entries.map((entry) => {
                const key = `${entry.time} ${entry.sha256}`;
                return <Rows key={key} entry={entry} isOpen={open === key} onToggle={() => setOpen(open === key ? null : key)} />;
              })}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Rows({ entry, isOpen, onToggle }: { entry: Sent; isOpen: boolean; onToggle(): void }) {
  const t = words.value;
  const arrays = Object.entries(entry.arrays);
  const name = { fit: t.kindFit, evaluate: t.kindEvaluate, publish: t.kindPublish }[entry.kind] ?? entry.kind;
  return (
    <>
      <tr>
        <td>{when(entry.time, language.value)}</td>
        <td>
          <button class="link" aria-expanded={isOpen} onClick={onToggle}>
            {name}
            {entry.sent === "refusal" ? ` (${t.refusal})` : ""}
          </button>
        </td>
        <td class="n">{size(entry.bytes, language.value)}</td>
        <td>
          {arrays.length
            ? arrays.map(([kind, { tensors = 0, numbers = 0 }]) => t.arraysOf(kind, tensors, number(numbers, language.value))).join("; ")
            : t.noArrays}
        </td>
        <td class="hash">{entry.sha256.slice(0, 12)}…</td>
      </tr>
      {isOpen && (
        <tr class="opened">
          <td colSpan={5}>
            <dl class="values">
              {Object.entries(entry.values).map(([key, value]) => (
                <div key={key}>
                  <dt>{key}</dt>
                  <dd>{typeof value === "object" ? JSON.stringify(value) : String(value)}</dd>
                </div>
              ))}
              <div>
                <dt>{t.sentBytes}</dt>
                <dd>{number(entry.bytes, language.value)}</dd>
              </div>
              <div>
                <dt>SHA-256</dt>
                <dd class="hash">{entry.sha256}</dd>
              </div>
            </dl>
          </td>
        </tr>
      )}
    </>
  );
}
