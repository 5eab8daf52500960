import { effect } from "@preact/signals";
import { render } from "preact";

import { App } from "./app";
import { watchKeys } from "./keys";
import { watchCameras } from "./state/cameras";
import { watchFederation } from "./state/federation";
import { watchHistory } from "./state/history";
import { watchDrops } from "./state/intake";
import { watchReview } from "./state/review";
import { watchSelection } from "./state/select";
import { watchServer } from "./state/server";
import { language, theme, view } from "./state/store";
import "./style/tokens.css";
import "./style/base.css";
import "./style/controls.css";
import "./style/layout.css";
import "./style/viewer.css";
import "./style/views.css";
import { VIEWS } from "./views";

function followAddress(): void {
  const id = location.hash.slice(1);
  if (VIEWS.some((one) => one.id === id)) view.value = id;
}

effect(() => {
  document.documentElement.lang = language.value === "zh" ? "zh-CN" : "en";
});
effect(() => {
  if (theme.value === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme.value;
});
followAddress();
addEventListener("hashchange", followAddress);
watchKeys();
watchDrops();
watchSelection();
watchReview();
watchCameras();
watchHistory();
watchFederation();
watchServer();
render(<App />, document.getElementById("app")!);
