import { useMemo } from "preact/hooks";

import { Icon } from "../parts/Icon";
import { Stage } from "../parts/Stage";
import { tell, textOf } from "../state/notices";
import { retry } from "../state/queue";
import { askForReview } from "../state/review";
import { shownPicture } from "../state/select";
import * as store from "../state/store";

/** The selected picture on the stage. */
export function PictureStage() {
  const t = store.words.value;
  const item = store.selected.value;
  const { levels } = shownPicture.value;
  const compared = store.comparedFound.value;
  const otherShapes = store.comparedShapes.value;
  const ownName = store.modelName(item?.found?.model ?? null);
  const comparison = useMemo(
    () => (compared ? { shapes: otherShapes, names: [ownName, store.modelName(compared.model)] as const } : null),
    [compared, otherShapes, ownName],
  );
  const classes = store.status.value?.classes ?? [];
  const canEdit = levels !== null && item?.found !== null;
  return (
    <Stage
      picture={levels}
      shapes={store.shapes.value}
      comparison={store.editing.value ? null : comparison}
      highlighted={store.highlighted.value}
      hovered={store.hoveredBox.value}
      chosen={store.chosenBox.value}
      divider={store.divider.value}
      editing={store.editing.value ? classes : null}
      onHover={(id) => (store.hoveredBox.value = id)}
      onChoose={(id) => (store.chosenBox.value = id)}
      onDivide={(share) => (store.divider.value = share)}
      onEdit={(shapes) => (store.corrected.value = shapes)}
      tools={
        <>
          {store.corrected.value && (
            <>
              <span class="badge">{t.edited}</span>
              <button class="tool wide" onClick={discard}>
                {t.discardEdits}
              </button>
            </>
          )}
          <button
            class="tool"
            title={t.reviewThisTitle}
            aria-label={t.reviewThisTitle}
            disabled={!canEdit || !item?.open}
            onClick={() => void askAboutIt().catch(tell)}
          >
            <Icon name="flag" />
          </button>
          <button
            class="tool"
            title={`${t.edit} (E)`}
            aria-label={t.edit}
            aria-pressed={store.editing.value}
            disabled={!canEdit}
            onClick={() => (store.editing.value = !store.editing.value)}
          >
            <Icon name="edit" />
          </button>
        </>
      }
    >
      <Empty />
    </Stage>
  );
}

async function askAboutIt(): Promise<void> {
  const item = store.selected.value;
  if (item?.open) await askForReview(await item.open(), item.name.split("/").pop() ?? item.name);
}

function discard(): void {
  store.editing.value = false;
  store.corrected.value = null;
}

/** What stands where a picture would be. */
function Empty() {
  const t = store.words.value;
  const item = store.selected.value;
  const { problem } = shownPicture.value;
  if (item?.state === "failed" && item.problem) {
    return (
      <div class="empty">
        <h2>{item.name}</h2>
        <p class="bad" role="alert">
          {textOf(item.problem)}
        </p>
        {item.open && (
          <button class="button" onClick={() => retry(item.id)}>
            {t.retry}
          </button>
        )}
      </div>
    );
  }
  if (problem) return <div class="empty">{t[problem]}</div>;
  if (item) return <div class="empty">{item.kind === "archive" ? item.name : ""}</div>;
  return (
    <div class="empty">
      <h2>{t.stageEmptyTitle}</h2>
      <p>{t.stageEmpty}</p>
      <button class="button primary" onClick={() => document.getElementById("input-files")?.click()}>
        {t.chooseAPicture}
      </button>
    </div>
  );
}
