import type { RefObject } from "preact";

import { Stage } from "../parts/Stage";
import { textOf } from "../state/notices";
import * as review from "../state/review";
import { chosenBox, hoveredBox, words } from "../state/store";
import type { Viewer } from "../viewer/viewer";

/** The picture that is reviewed, with boxes that can be corrected. */
export function ReviewStage({ handle }: { handle: RefObject<Viewer | null> }) {
  const t = words.value;
  const shown = review.shownReview.value;
  const problem = review.reviewProblem.value;
  return (
    <div
      class="fill"
      aria-busy={!review.isPresent.value && review.reviewId.value !== null && !problem}
      data-picture={review.isPresent.value ? shown?.entry.id : undefined}
      onKeyDownCapture={(event) => {
        // Enter means the decision here; the viewer would enlarge the chosen box.
        if (event.key !== "Enter" || !(event.target as Element).classList.contains("viewer")) return;
        event.preventDefault();
        event.stopPropagation();
        void review.addToTraining();
      }}
    >
      <Stage
        handle={handle}
        picture={shown?.levels ?? null}
        shapes={review.reviewShapes.value}
        hovered={hoveredBox.value}
        chosen={chosenBox.value}
        editing={shown && review.mayCorrect.value ? shown.entry.classes : null}
        onHover={(id) => (hoveredBox.value = id)}
        onChoose={(id) => (chosenBox.value = id)}
        onEdit={review.correct}
        tools={
          <>
            {review.isDraft.value && shown?.entry.state === "open" && (
              <>
                <span class="badge">{t.reviewDraft}</span>
                <button class="tool wide" onClick={review.discardDraft}>
                  {t.reviewAsFound}
                </button>
              </>
            )}
          </>
        }
      >
        <div class="empty">
          {problem ? (
            <p class="bad" role="alert">
              {textOf(problem)}
            </p>
          ) : (
            review.reviewed.value === null && <p>{t.reviewNone}</p>
          )}
        </div>
      </Stage>
    </div>
  );
}
