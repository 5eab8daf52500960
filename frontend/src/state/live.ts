// Frames with what was found in them, from a server's camera or from the browser's own; always the newest, none in a queue.

import { socketAddress } from "../api/client";
import type { CountingWanted, LiveFound } from "../api/types";

/** What a source of frames tells. */
export interface Sink {
  /** A frame and what was found in it; the next one comes when this is done, and those between are passed over. */
  frame(found: LiveFound, picture: Blob): Promise<void>;
  /** It does not work; null: it works again. */
  problem(reason: LiveProblem | null): void;
}

export type LiveProblem = "liveLost" | "liveRemoved" | "cameraInsecure" | "cameraDenied" | "cameraNone" | "cameraBusy" | "cameraEnded";

/** How the browser's frames are looked at. */
export interface Asked {
  readonly min_score: number;
  readonly max_iou: number;
  readonly counting: CountingWanted | null;
}

export interface OwnCamera {
  ask(asked: Asked): void;
  close(): void;
}

const AGAIN_MS = 1500;
const REMOVED = 4404;
const MOST_SIDE = 1280;
const QUALITY = 0.85;

/** Watch a camera of the server; returns what ends it. A lost connection is tried again. */
export function watchStream(name: string, sink: Sink): () => void {
  const newest = newestOnly(sink);
  let socket: WebSocket;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let ended = false;
  const open = () => {
    let found: LiveFound | null = null;
    socket = new WebSocket(socketAddress(`/streams/${encodeURIComponent(name)}/live`, { plain: true }));
    socket.binaryType = "blob";
    socket.onmessage = ({ data }: MessageEvent<string | Blob>) => {
      if (typeof data === "string") {
        found = JSON.parse(data) as LiveFound;
      } else if (found) {
        sink.problem(null);
        newest(found, data);
      }
    };
    socket.onclose = ({ code }) => {
      if (ended) return;
      sink.problem(code === REMOVED ? "liveRemoved" : "liveLost");
      if (code !== REMOVED) timer = setTimeout(open, AGAIN_MS);
    };
  };
  open();
  return () => {
    ended = true;
    clearTimeout(timer);
    socket.close();
  };
}

/** Send the frames of this browser's camera, one at a time: the next leaves when the last one's boxes are there. A camera
 *  that was unplugged is used again when it is back. */
export function watchOwnCamera(asked: Asked, sink: Sink): OwnCamera {
  // A browser has none where the page does not come over TLS or from this machine.
  const devices = navigator.mediaDevices as MediaDevices | undefined;
  const video = document.createElement("video");
  const canvas = document.createElement("canvas");
  let wanted = asked;
  let socket: WebSocket | null = null;
  let stream: MediaStream | null = null;
  let sent: Blob | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let ended = false;

  const send = () => {
    if (ended || socket?.readyState !== WebSocket.OPEN) return;
    const shrunk = Math.min(MOST_SIDE / Math.max(video.videoWidth, video.videoHeight, 1), 1);
    canvas.width = Math.max(Math.round(video.videoWidth * shrunk), 1);
    canvas.height = Math.max(Math.round(video.videoHeight * shrunk), 1);
    canvas.getContext("2d")!.drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(
      (blob) => {
        if (!blob || ended || socket?.readyState !== WebSocket.OPEN) return;
        sent = blob;
        socket.send(blob);
      },
      "image/jpeg",
      QUALITY,
    );
  };
  const connect = () => {
    const mine = new WebSocket(socketAddress("/live"));
    socket = mine;
    mine.onopen = () => {
      mine.send(JSON.stringify(wanted));
      send();
    };
    mine.onmessage = ({ data }: MessageEvent<string>) => {
      const found = JSON.parse(data) as LiveFound;
      const picture = sent;
      sink.problem(null);
      // A server with too much to do says so in place of boxes: the next frame is tried.
      const shown = picture && !found.error ? sink.frame(found, picture) : Promise.resolve();
      void shown.finally(() => requestAnimationFrame(send));
    };
    mine.onclose = () => {
      if (ended) return;
      sink.problem("liveLost");
      timer = setTimeout(connect, AGAIN_MS);
    };
  };
  const hangUp = () => {
    clearTimeout(timer);
    if (socket) socket.onclose = socket.onmessage = null;
    socket?.close();
    socket = null;
    if (stream) stop(stream);
    stream = video.srcObject = null;
  };
  const lose = () => {
    hangUp();
    sink.problem("cameraEnded");
  };
  const begin = async () => {
    if (!devices) throw new DOMException("", "SecurityError");
    const opened = await devices.getUserMedia({ video: { facingMode: "environment", width: { ideal: MOST_SIDE } } });
    if (ended || stream) {
      stop(opened);
      return;
    }
    stream = opened;
    for (const track of opened.getTracks()) track.onended = lose;
    video.srcObject = opened;
    video.muted = true;
    video.playsInline = true;
    await video.play();
    connect();
  };
  // Told when a camera is plugged in, and when one is unplugged: then what was said of it stays.
  const beginAgain = () => {
    if (!stream) begin().catch(() => {});
  };
  devices?.addEventListener("devicechange", beginAgain);
  begin().catch((error: unknown) => ended || sink.problem(problemOf(error)));
  return {
    ask(now) {
      wanted = now;
      if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wanted));
    },
    close() {
      ended = true;
      devices?.removeEventListener("devicechange", beginAgain);
      hangUp();
    },
  };
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}

function problemOf(error: unknown): LiveProblem {
  switch (error instanceof DOMException ? error.name : "") {
    case "SecurityError":
      return "cameraInsecure";
    case "NotAllowedError":
      return "cameraDenied";
    case "NotFoundError":
    case "OverconstrainedError":
      return "cameraNone";
    default:
      return "cameraBusy";
  }
}

/** Hands frames on one at a time; of those that come meanwhile only the last is kept. */
function newestOnly(sink: Sink): (found: LiveFound, picture: Blob) => void {
  let busy = false;
  let next: [LiveFound, Blob] | null = null;
  const take = (found: LiveFound, picture: Blob): void => {
    if (busy) {
      next = [found, picture];
      return;
    }
    busy = true;
    void sink.frame(found, picture).finally(() => {
      busy = false;
      const waiting = next;
      next = null;
      if (waiting) take(...waiting);
    });
  };
  return take;
}
