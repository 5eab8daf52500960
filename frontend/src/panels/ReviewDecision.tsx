import { Confirm } from "../parts/Confirm";
import { Slider } from "../parts/Slider";
import * as review from "../state/review";
import { mayChange, words } from "../state/store";

/** What becomes of the picture, and how many wait for the next round. */
export function ReviewDecision() {
  const t = words.value;
  const entry = review.shownReview.value?.entry ?? null;
  const corrections = review.corrections.value;
  return (
    <section class="panel" aria-labelledby="decision-title">
      <h2 id="decision-title">{t.reviewDecision}</h2>
      <p class="small" role="status" id="corrections">
        {corrections === null ? t.reviewAlone : <b>{t.reviewCorrections(corrections)}</b>} {t.reviewStays}
      </p>
      {!mayChange.value ? (
        <p class="muted small">{t.reviewLookOnly}</p>
      ) : (
        entry && (
          <>
            {entry.state === "open" ? (
              <>
                <p class="muted small">{t.reviewHow}</p>
                <button class="button primary" disabled={!review.mayDecide.value} onClick={() => void review.addToTraining()}>
                  {t.reviewAdd} <kbd>Enter</kbd>
                </button>
                <button class="button" disabled={!review.mayDecide.value} onClick={() => void review.dismiss()}>
                  {t.reviewDismiss} <kbd>X</kbd>
                </button>
              </>
            ) : (
              <>
                <p class="badge">{entry.state === "added" ? t.reviewAddedState : t.reviewDismissedState}</p>
                <button class="button" disabled={!review.mayDecide.value} onClick={() => void review.reopen(entry.id)}>
                  {t.reviewReopen}
                </button>
              </>
            )}
            <Confirm
              key={entry.id}
              label={t.reviewDelete}
              question={t.reviewDeleteSure}
              disabled={!review.mayDecide.value}
              onConfirm={() => void review.forget(entry.id)}
            />
          </>
        )
      )}
      {review.lastDecided.value && (
        <button class="link start" onClick={() => void review.takeBack()}>
          {t.reviewTakeBack} <kbd>U</kbd>
        </button>
      )}
      {entry && entry.state === "open" && !review.isDraft.value && (
        <Slider
          label={t.reviewScore}
          value={review.reviewScore.value}
          min={0.05}
          max={0.95}
          onChange={(value) => (review.reviewScore.value = value)}
        />
      )}
    </section>
  );
}
