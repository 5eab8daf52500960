import { useState } from "preact/hooks";

import { tell } from "../state/notices";
import { putToUse, rollBack } from "../state/server";
import { language, mayChange, models, words } from "../state/store";
import { size, when } from "../text/format";

/** The models of this site, where each came from, and the one in use. */
export function ModelTable() {
  const t = words.value;
  const [busy, setBusy] = useState(false);
  const change = async (does: () => Promise<void>) => {
    setBusy(true);
    await does().catch(tell);
    setBusy(false);
  };
  if (models.value.length === 0) return null;
  return (
    <section class="panel box" aria-labelledby="models-title">
      <div class="panel-head">
        <h2 id="models-title">{t.modelsTitle}</h2>
        {mayChange.value && models.value.length > 1 && (
          <button class="button" disabled={busy} onClick={() => void change(rollBack)}>
            {t.rollBack}
          </button>
        )}
      </div>
      <div class="table-scroll" tabIndex={0} role="region" aria-label={t.modelsTitle}>
        <table class="table">
          <thead>
            <tr>
              <th>{t.model}</th>
              <th>{t.origin}</th>
              <th class="n">{t.round}</th>
              <th class="n">{t.map50}</th>
              <th>{t.added}</th>
              <th class="n">{t.sentBytes}</th>
              <th />
            </tr>
          </thead>
          <tbody>
            {models.value.map((model) => (
              <tr key={model.hash} data-used={model.in_use}>
                <td>
                  <span title={model.hash}>{model.label || model.hash.slice(0, 8)}</span>
                </td>
                <td>{model.origin === "federation" ? t.originFederation : model.origin === "file" ? t.originFile : t.unknown}</td>
                <td class="n">{model.round ?? t.unknown}</td>
                <td class="n">{model.map50?.toFixed(3) ?? t.unknown}</td>
                <td>{when(model.added, language.value)}</td>
                <td class="n">{size(model.bytes, language.value)}</td>
                <td class="n">
                  {model.in_use ? (
                    <b class="good">{t.inUse}</b>
                  ) : model.night ? (
                    t.night
                  ) : (
                    mayChange.value && (
                      <button
                        class="link"
                        disabled={busy}
                        aria-label={t.useNamed(model.label || model.hash.slice(0, 8))}
                        onClick={() => void change(() => putToUse(model.hash))}
                      >
                        {t.use}
                      </button>
                    )
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
