import { useRef, useState } from "preact/hooks";

import { Icon } from "../parts/Icon";
import { chosenFiles } from "../parts/files";
import { takeIn } from "../state/intake";
import { words } from "../state/store";

/** Where pictures come in: a place to drop them, and choices of files, folders and ZIP files. */
export function Sources() {
  const t = words.value;
  const files = useRef<HTMLInputElement>(null);
  const folder = useRef<HTMLInputElement>(null);
  const zip = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  const take = (input: HTMLInputElement) => {
    takeIn(chosenFiles(input.files));
    input.value = ""; // the same file may be chosen again
  };
  return (
    <section class="panel" aria-labelledby="sources-title">
      <h2 id="sources-title">{t.sources}</h2>
      <div
        class="drop"
        data-over={over}
        onDragEnter={() => setOver(true)}
        onDragLeave={() => setOver(false)}
        onDrop={() => setOver(false)}
      >
        <Icon name="upload" />
        <p>{over ? t.dropNow : t.dropHere}</p>
        <p class="muted">{t.kinds}</p>
      </div>
      <div class="buttons">
        <button class="button" id="choose-files" onClick={() => files.current?.click()}>
          <Icon name="picture" />
          {t.chooseFiles}
        </button>
        <button class="button" onClick={() => folder.current?.click()}>
          <Icon name="folder" />
          {t.chooseFolder}
        </button>
        <button class="button" onClick={() => zip.current?.click()}>
          <Icon name="zip" />
          {t.chooseZip}
        </button>
      </div>
      <input ref={files} id="input-files" type="file" accept="image/*" multiple hidden onChange={(event) => take(event.currentTarget)} />
      <input ref={folder} id="input-folder" type="file" multiple hidden {...{ webkitdirectory: true }} onChange={(event) => take(event.currentTarget)} />
      <input ref={zip} id="input-zip" type="file" accept=".zip,application/zip" multiple hidden onChange={(event) => take(event.currentTarget)} />
    </section>
  );
}
