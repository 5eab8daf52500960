import { address } from "../api/client";
import type { Reason, Review } from "../api/types";
import { Segments, Select } from "../parts/Choice";
import { inWords } from "../state/export";
import * as review from "../state/review";
import { language, words } from "../state/store";
import { sourceName, when } from "../text/format";

/** Pictures that wait for somebody, or that somebody has decided about. */
export function ReviewList() {
  const t = words.value;
  const list = review.reviews.value;
  const sources = review.reviewSources.value;
  return (
    <section class="panel grow" aria-labelledby="review-title">
      <div class="panel-head">
        <h2 id="review-title">{t.review}</h2>
        <span class="muted small" role="status">
          {t.reviewWaiting(review.openReviews.value)}
        </span>
      </div>
      <Segments
        label={t.reviewShow}
        value={review.reviewFilter.value}
        options={[
          ["open", t.reviewOpen],
          ["added", t.reviewAddedState],
          ["dismissed", t.reviewDismissedState],
          ["all", t.reviewAll],
        ]}
        onChange={(value) => (review.reviewFilter.value = value)}
      />
      <div class="pair">
        <Select
          label={t.reviewReason}
          value={review.reviewReason.value}
          options={[["", t.reviewAnyReason], ...Object.entries(reasonNames()) as [Reason, string][]]}
          onChange={(value) => (review.reviewReason.value = value)}
        />
        <Select
          label={t.reviewSource}
          value={review.reviewSource.value}
          options={[["", t.reviewAnySource], ...sources.map((source) => [source, sourceName(source, t)] as const)]}
          onChange={(value) => (review.reviewSource.value = value)}
        />
      </div>
      {list.length === 0 ? (
        <p class="muted">{review.openReviews.value ? t.reviewNoneLike : t.reviewNone}</p>
      ) : (
        <ul class="cards" aria-label={t.reviewList}>
          {list.map((entry) => (
            <Row key={entry.id} entry={entry} />
          ))}
          {review.moreReviews.value && (
            <li>
              <button class="link" onClick={() => void review.loadMore()}>
                {t.reviewMore}
              </button>
            </li>
          )}
        </ul>
      )}
    </section>
  );
}

/** Frames of a camera have a number for a name: the camera says more. */
function nameOf({ name, source }: Review): string {
  return /^\d*$/.test(name) ? sourceName(source, words.value) : name;
}

function Row({ entry }: { entry: Review }) {
  const t = words.value;
  const chosen = entry.id === review.reviewId.value;
  const names = reasonNames();
  const counts = new Map<string, number>();
  const boxes = entry.boxes ?? entry.detections.filter(({ score }) => score >= review.reviewScore.value);
  for (const { class: name } of boxes) counts.set(name, (counts.get(name) ?? 0) + 1);
  return (
    <li class="card-row" data-state={entry.state}>
      <button aria-current={chosen ? "true" : undefined} onClick={() => review.selectReview(entry.id)}>
        <img src={address(`/review/${entry.id}/picture`)} alt="" loading="lazy" decoding="async" />
        <span class="card-text">
          <span class="card-name">{nameOf(entry)}</span>
          <span class="muted small">{entry.reasons.map((reason) => names[reason]).join(" · ")}</span>
          <span class="muted small">
            {when(entry.time, language.value)} · {sourceName(entry.source, t)}
          </span>
          <span class="muted small">{inWords([...counts], language.value) || t.objects(0)}</span>
        </span>
      </button>
    </li>
  );
}

function reasonNames(): Record<Reason, string> {
  const t = words.value;
  return {
    low_margin: t.reasonLowMargin,
    disagreement: t.reasonDisagreement,
    track_break: t.reasonTrackBreak,
    asked: t.reasonAsked,
  };
}
