import { liveFrame, liveShapes, shownRate, watched } from "../state/cameras";
import { words } from "../state/store";
import { CameraList } from "./CameraList";
import { CameraStage } from "./CameraStage";
import { CountingPanel } from "./CountingPanel";
import { Detections } from "./Detections";
import { LiveCurve } from "./LiveCurve";
import { Sliders } from "./Sliders";
import { Statistics } from "./Statistics";

/** Cameras on the left, what the chosen one sees in the middle, what is counted on the right. */
export function CamerasView() {
  const found = liveFrame.value?.found ?? null;
  const classes = [...new Set(found?.detections.map((box) => box.class))].sort((a, b) => a.localeCompare(b));
  return (
    <div class="columns">
      <div class="left">
        <CameraList />
      </div>
      <div class="middle">
        <CameraStage />
        <Statistics of={liveShapes} found={found} facts={words.value.perSecond(shownRate.value)} />
        <LiveCurve />
      </div>
      <div class="right">
        <CountingPanel />
        <Sliders classes={classes} overlap={watched.value?.kind === "own"} />
        <Detections of={liveShapes} />
      </div>
    </div>
  );
}
