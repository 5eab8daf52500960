import { useRef } from "preact/hooks";

import { chosenBox } from "../state/store";
import { reviewShapes } from "../state/review";
import type { Viewer } from "../viewer/viewer";
import { Detections } from "./Detections";
import { ReviewDecision } from "./ReviewDecision";
import { ReviewList } from "./ReviewList";
import { ReviewStage } from "./ReviewStage";

const MARGIN = 90;

/** Pictures that wait on the left, the one to correct in the middle, what is decided about it on the right. */
export function ReviewView() {
  const viewer = useRef<Viewer | null>(null);
  return (
    <div class="columns">
      <div class="left">
        <ReviewList />
      </div>
      <div class="middle">
        <ReviewStage handle={viewer} />
      </div>
      <div class="right">
        <ReviewDecision />
        <Detections
          of={reviewShapes}
          onJump={(shape) => {
            chosenBox.value = shape.id;
            viewer.current?.frameRegion(shape.xyxy, MARGIN);
          }}
        />
      </div>
    </div>
  );
}
