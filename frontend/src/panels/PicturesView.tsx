import { Detections } from "./Detections";
import { ExportPanel } from "./ExportPanel";
import { ModelPanel } from "./ModelPanel";
import { PictureStage } from "./PictureStage";
import { Queue } from "./Queue";
import { Sliders } from "./Sliders";
import { Sources } from "./Sources";
import { Statistics } from "./Statistics";

/** Pictures in on the left, the picture in the middle with its counts below, settings and results on the right. */
export function PicturesView() {
  return (
    <div class="columns">
      <div class="left">
        <Sources />
        <Queue />
      </div>
      <div class="middle">
        <PictureStage />
        <Statistics />
      </div>
      <div class="right">
        <ModelPanel />
        <Sliders />
        <ExportPanel />
        <Detections />
      </div>
    </div>
  );
}
