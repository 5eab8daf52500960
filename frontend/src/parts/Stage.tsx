import type { ComponentChildren, RefObject } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { showLabels, toggleLabels, words } from "../state/store";
import type { Point } from "../viewer/geometry";
import type { Levels } from "../viewer/levels";
import type { Mark, Pen } from "../viewer/marks";
import { Viewer, type Brush, type Comparison, type Shape } from "../viewer/viewer";
import { Icon } from "./Icon";
import { Slider } from "./Slider";

interface Props {
  picture: Levels | null;
  /** The picture is the next frame of a camera: the view stays. */
  stay?: boolean;
  shapes: readonly Shape[];
  comparison?: Comparison | null;
  highlighted?: string | null;
  hovered?: number | null;
  chosen?: number | null;
  divider?: number;
  /** The classes boxes may get; only while they are edited. */
  editing?: readonly string[] | null;
  /** Shown instead of a picture. */
  children?: ComponentChildren;
  /** Buttons at the end of the bar, before the one for labels. */
  tools?: ComponentChildren;
  /** Lines and zones over the picture, and the pen while one is drawn. */
  marks?: readonly Mark[];
  pen?: Pen | null;
  /** Gets the viewer, for what only its owner asks of it. */
  handle?: RefObject<Viewer | null>;
  onHover?(id: number | null): void;
  onChoose?(id: number | null): void;
  onDivide?(share: number): void;
  onEdit?(shapes: readonly Shape[]): void;
  onPen?(at: Point | null): void;
}

/** The viewer with its bar: a picture of any source, boxes over it, and what can be done with them. */
export function Stage(props: Props) {
  const t = words.value;
  const host = useRef<HTMLDivElement>(null);
  const viewer = useRef<Viewer | null>(null);
  const classField = useRef<HTMLSelectElement>(null);
  const latest = useRef(props);
  latest.current = props;
  const [scale, setScale] = useState(1);
  const [brush, setBrush] = useState(0);
  const { picture, shapes, comparison = null, editing = null } = props;

  useLayoutEffect(() => {
    const made = new Viewer(host.current!, {
      hover: (id) => latest.current.onHover?.(id),
      choose: (id) => latest.current.onChoose?.(id),
      divide: (share) => latest.current.onDivide?.(share),
      edit: (edited) => latest.current.onEdit?.(edited),
      pen: (at) => latest.current.onPen?.(at),
      zoom: setScale,
    });
    viewer.current = made;
    return () => made.destroy();
  }, []);
  const classes = editing ?? [];
  const brushOf = (index: number): Brush => ({ name: classes[index] ?? classes[0] ?? "", classId: index });
  const isEditing = editing !== null;
  useLayoutEffect(() => viewer.current?.setPicture(picture, props.stay), [picture]);
  useLayoutEffect(() => viewer.current?.setShapes(shapes, comparison), [shapes, comparison]);
  useLayoutEffect(() => viewer.current?.setEditing(isEditing ? brushOf(brush) : null), [isEditing, brush]);
  useLayoutEffect(() => viewer.current?.setHighlight(props.highlighted ?? null), [props.highlighted]);
  useLayoutEffect(() => viewer.current?.setHovered(props.hovered ?? null), [props.hovered]);
  useLayoutEffect(() => viewer.current?.setChosen(props.chosen ?? null), [props.chosen]);
  useLayoutEffect(() => viewer.current?.setLabels(showLabels.value), [showLabels.value]);
  useLayoutEffect(() => viewer.current?.setDivider(props.divider ?? 0.5), [props.divider]);

  useLayoutEffect(() => viewer.current?.setMarks(props.marks ?? []), [props.marks]);
  useLayoutEffect(() => viewer.current?.setPen(props.pen ?? null), [props.pen]);
  useLayoutEffect(() => {
    if (props.handle) props.handle.current = viewer.current;
  }, []);

  const relabel = (index: number) => {
    setBrush(index);
    viewer.current?.relabel(brushOf(index));
  };
  const chosenShape = shapes.find((shape) => shape.id === props.chosen);
  const chosenClass = chosenShape ? classes.indexOf(chosenShape.name) : brush;

  return (
    <section class="stage" aria-label={t.stage}>
      <div class="bar" role="toolbar" aria-label={t.stage}>
        <div class="group">
          <button class="tool" title={t.zoomOut} aria-label={t.zoomOut} disabled={!picture} onClick={() => viewer.current?.zoomBy(0.8)}>
            <Icon name="minus" />
          </button>
          <output class="zoom" aria-label="Zoom">{picture ? `${Math.round(scale * 100)} %` : ""}</output>
          <button class="tool" title={t.zoomIn} aria-label={t.zoomIn} disabled={!picture} onClick={() => viewer.current?.zoomBy(1.25)}>
            <Icon name="plus" />
          </button>
          <button class="tool" title={t.fit} aria-label={t.fit} disabled={!picture} onClick={() => viewer.current?.fit()}>
            <Icon name="fit" />
          </button>
          <button class="tool wide" title={t.actualSize} aria-label={`1:1 ${t.actualSize}`} disabled={!picture} onClick={() => viewer.current?.actualSize()}>
            1:1
          </button>
        </div>
        {isEditing && (
          <div class="group">
            <select
              class="select"
              ref={classField}
              aria-label={t.classOfBox}
              title={`${t.classOfBox} (C)`}
              value={Math.max(chosenClass, 0)}
              onKeyDown={(event) => {
                if (event.key !== "Enter" && event.key !== "Escape") return;
                event.preventDefault();
                event.stopPropagation();
                host.current?.focus();
              }}
              onChange={(event) => relabel(Number(event.currentTarget.value))}
            >
              {classes.map((name, index) => (
                <option key={name} value={index}>
                  {name}
                </option>
              ))}
            </select>
            <button class="tool" title={t.newBox} aria-label={t.newBox} onClick={() => viewer.current?.addInMiddle()}>
              <Icon name="plus" />
            </button>
            <button class="tool" title={t.deleteBox} aria-label={t.deleteBox} disabled={!chosenShape} onClick={() => viewer.current?.remove()}>
              <Icon name="trash" />
            </button>
            <button class="tool" title={t.undo} aria-label={t.undo} disabled={!viewer.current?.undoable.undo} onClick={() => viewer.current?.undo()}>
              <Icon name="undo" />
            </button>
            <button class="tool" title={t.redo} aria-label={t.redo} disabled={!viewer.current?.undoable.redo} onClick={() => viewer.current?.redo()}>
              <Icon name="redo" />
            </button>
          </div>
        )}
        <div class="group end">
          {props.tools}
          <button
            class="tool"
            title={`${t.labels} (L)`}
            aria-label={t.labels}
            aria-pressed={showLabels.value}
            onClick={toggleLabels}
          >
            <Icon name="tag" />
          </button>
        </div>
      </div>
      <div
        class="viewer"
        ref={host}
        tabIndex={picture ? 0 : -1}
        role="application"
        aria-label={t.stage}
        aria-description={t.stageHint}
        hidden={!picture}
        data-editing={isEditing}
        onKeyDown={(event) => {
          if (isEditing && event.key.toLowerCase() === "c" && !event.ctrlKey && !event.metaKey && !event.altKey) {
            event.preventDefault();
            classField.current?.focus();
            return;
          }
          const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
          if (!isEditing || digit < 0 || digit >= classes.length || event.ctrlKey || event.metaKey || event.altKey) return;
          event.preventDefault();
          relabel(digit);
        }}
      />
      {!picture && <div class="viewer-empty">{props.children}</div>}
      {comparison && (
        <div class="divider">
          <Slider label={t.divider} quiet value={props.divider ?? 0.5} min={0} max={1} text={`${Math.round((props.divider ?? 0.5) * 100)} %`} onChange={(value) => props.onDivide?.(value)} />
        </div>
      )}
    </section>
  );
}
