import { useState } from "preact/hooks";

import { Icon } from "../parts/Icon";
import { asCsv, asJson, picturePng, save, stem } from "../state/export";
import { tell } from "../state/notices";
import { shownPicture } from "../state/select";
import { items, selected, selectedId, shapes, words } from "../state/store";

/** What is shown, as files: the picture with its boxes, or the boxes of this picture or of all. */
export function ExportPanel() {
  const t = words.value;
  const [all, setAll] = useState(false);
  const ready = items.value.filter((item) => item.kind === "picture" && item.found);
  const own = selected.value?.found ? selected.value : null;
  const scope = all ? ready : own ? [own] : [];
  const name = all ? "manyeyes" : stem(own?.name ?? "");
  const { levels } = shownPicture.value;
  const png = async () => {
    if (levels && own) save(await picturePng(levels, shapes.value), `${stem(own.name)}-boxes.png`);
  };
  return (
    <section class="panel" aria-labelledby="export-title">
      <div class="panel-head">
        <h2 id="export-title">{t.export}</h2>
        <div class="segments" role="group" aria-label={t.exportScope}>
          <button aria-pressed={!all} onClick={() => setAll(false)}>
            {t.thisPicture}
          </button>
          <button aria-pressed={all} onClick={() => setAll(true)}>
            {t.allPictures(ready.length)}
          </button>
        </div>
      </div>
      <div class="buttons">
        <button class="button" title={t.exportPngTitle} disabled={!levels || !own || all} onClick={() => void png().catch(tell)}>
          <Icon name="save" />
          {t.exportPng}
        </button>
        <button class="button" disabled={!scope.length} onClick={() => save(asJson(scope, selectedId.value), `${name}.json`, "application/json")}>
          <Icon name="save" />
          JSON
        </button>
        <button class="button" disabled={!scope.length} onClick={() => save(asCsv(scope, selectedId.value), `${name}.csv`, "text/csv")}>
          <Icon name="save" />
          CSV
        </button>
      </div>
      {ready.length === 0 && <p class="muted small">{t.nothingToExport}</p>}
    </section>
  );
}
