import { useLayoutEffect, useRef } from "preact/hooks";

import { Icon } from "../parts/Icon";
import { helpOpen, words } from "../state/store";

/** Every shortcut; opened by `?`. */
export function Help() {
  const t = words.value;
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    if (helpOpen.value) dialog.current?.showModal();
    else dialog.current?.close();
  }, [helpOpen.value]);
  const groups = [
    {
      title: t.helpEverywhere,
      rows: [
        [["?"], t.keyHelp],
        [["O"], t.keyOpen],
        [["J", "K"], t.keyNextPicture],
        [["L"], t.labels],
        [["H"], t.keyClass],
        [["E"], t.keyEdit],
      ],
    },
    {
      title: t.helpPicture,
      rows: [
        [["+", "−"], t.keyZoom],
        [["0"], t.keyFit],
        [["←", "↑", "→", "↓"], t.keyPan],
        [["[", "]"], t.keyNextBox],
        [["Enter"], t.keyEnlarge],
        [["Esc"], t.keyEscape],
      ],
    },
    {
      title: t.helpEditing,
      rows: [
        [["N"], t.keyNewBox],
        [["←", "↑", "→", "↓"], t.keyMoveBox],
        [["Alt + ←", "↑", "→", "↓"], t.keySizeBox],
        [["1", "…", "9"], t.keyRelabel],
        [["Tab"], t.keyTab],
        [["C"], t.keyClassField],
        [["Z"], t.keyEnlarge],
        [["Del"], t.keyDelete],
        [["Ctrl + Z", "Ctrl + Y"], t.keyUndo],
      ],
    },
    {
      title: t.review,
      rows: [
        [["J", "K"], t.keyNextPicture],
        [["Enter"], t.reviewAdd],
        [["X"], t.reviewDismiss],
        [["U"], t.reviewTakeBack],
      ],
    },
    {
      title: t.helpMouse,
      rows: [
        [[t.mouseWheel], t.mouseWheelDoes],
        [[t.mouseDrag], t.mouseDragDoes],
        [[t.mouseRight], t.mouseRightDoes],
        [[t.mouseDouble], t.mouseDoubleDoes],
      ],
    },
  ] as const;
  return (
    <dialog
      class="help"
      ref={dialog}
      aria-labelledby="help-title"
      onCancel={(event) => {
        // The browser tells of the end of a dialog some time after it is gone; shortcuts hold again at once.
        event.preventDefault();
        helpOpen.value = false;
      }}
      onClose={() => (helpOpen.value = false)}
    >
      <div class="panel-head">
        <h2 id="help-title">{t.helpTitle}</h2>
        <button class="tool" aria-label={t.close} onClick={() => (helpOpen.value = false)}>
          <Icon name="close" />
        </button>
      </div>
      <div class="help-groups">
        {groups.map(({ title, rows }) => (
          <section key={title}>
            <h3>{title}</h3>
            <dl>
              {rows.map(([keys, does]) => (
                <div key={does}>
                  <dt>
                    {keys.map((key) => (
                      <kbd key={key}>{key}</kbd>
                    ))}
                  </dt>
                  <dd>{does}</dd>
                </div>
              ))}
            </dl>
          </section>
        ))}
      </div>
    </dialog>
  );
}
