import { useState } from "preact/hooks";

import { tell } from "../state/notices";
import { putToUse, rollBack } from "../state/server";
import { chosenModel, comparedFound, comparedModel, mayChange, modelInUse, models, selected, words } from "../state/store";

/** Which model looks, where it comes from and how good it is; another one to compare it with. */
export function ModelPanel() {
  const t = words.value;
  const [busy, setBusy] = useState(false);
  const hash = chosenModel.value ?? modelInUse.value ?? "";
  const model = models.value.find((one) => one.hash === hash);
  const others = models.value.filter((one) => one.hash !== hash);
  const change = async (does: () => Promise<void>) => {
    setBusy(true);
    try {
      await does();
      chosenModel.value = null;
    } catch (error) {
      tell(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="panel" aria-labelledby="model-title">
      <div class="panel-head">
        <h2 id="model-title">{t.model}</h2>
        {mayChange.value && models.value.length > 1 && (
          <button class="link" disabled={busy} onClick={() => void change(rollBack)}>
            {t.rollBack}
          </button>
        )}
      </div>
      <select
        class="select"
        aria-label={t.model}
        value={hash}
        onChange={(event) => {
          const { value } = event.currentTarget;
          chosenModel.value = value === modelInUse.value ? null : value;
          if (comparedModel.value === value) comparedModel.value = null;
        }}
      >
        {models.value.map((one) => (
          <option key={one.hash} value={one.hash}>
            {one.label || one.hash.slice(0, 8)}
            {one.in_use ? ` (${t.inUse})` : one.night ? ` (${t.night})` : ""}
          </option>
        ))}
      </select>
      {model && (
        <dl class="facts-list">
          <div>
            <dt>{t.round}</dt>
            <dd>{model.round ?? t.unknown}</dd>
          </div>
          <div>
            <dt>{t.map50}</dt>
            <dd>{model.map50?.toFixed(3) ?? t.unknown}</dd>
          </div>
          <div>
            <dt>{t.origin}</dt>
            <dd>{model.origin === "federation" ? t.originFederation : model.origin === "file" ? t.originFile : t.unknown}</dd>
          </div>
        </dl>
      )}
      {mayChange.value && hash !== modelInUse.value && (
        <button class="button" disabled={busy} onClick={() => void change(() => putToUse(hash))}>
          {t.putToUse}
        </button>
      )}
      <label class="field">
        <span>
          {t.compareWith}
          {comparedModel.value && selected.value?.found && !comparedFound.value && ` · ${t.stateLooking}…`}
        </span>
        <select
          class="select"
          value={comparedModel.value ?? ""}
          disabled={!others.length}
          onChange={(event) => (comparedModel.value = event.currentTarget.value || null)}
        >
          <option value="">{t.noComparison}</option>
          {others.map((one) => (
            <option key={one.hash} value={one.hash}>
              {one.label || one.hash.slice(0, 8)}
            </option>
          ))}
        </select>
      </label>
    </section>
  );
}
