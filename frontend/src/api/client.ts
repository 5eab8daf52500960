// Every request to the server goes through here: same origin, the header its guard asks for, errors as `Problem`.

const PREFIX = "/api/v1";
const OWN = { "x-manyeyes": "1" };

export type Query = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** What the server says is wrong. Status 0: it could not be reached. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    readonly cure: string | null = null,
    /** Seconds after which it may be asked again, where it says so. */
    readonly retryAfter: number | null = null,
  ) {
    super(reason);
  }
}

export function address(path: string, query: Query = {}): string {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const text = new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
  return `${PREFIX}${path}${text && `?${text}`}`;
}

/** The address of a WebSocket of the server. */
export function socketAddress(path: string, query: Query = {}): string {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${address(path, query)}`;
}

async function ask(method: string, path: string, query?: Query, body?: unknown): Promise<Response> {
  const headers: Record<string, string> = { ...OWN };
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer: Response;
  try {
    answer = await fetch(address(path, query), {
      method,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, "");
  }
  if (!answer.ok) throw problemOf(answer.status, await answer.text(), answer.headers.get("retry-after"));
  return answer;
}

/** Raises: Problem. */
export async function get<T>(path: string, query?: Query): Promise<T> {
  return (await (await ask("GET", path, query)).json()) as T;
}

export async function getText(path: string): Promise<string> {
  return (await ask("GET", path)).text();
}

export async function getBlob(path: string): Promise<Blob> {
  return (await ask("GET", path)).blob();
}

/** Change something; the answer is null where there is none. Raises: Problem. */
export async function send<T = null>(
  method: "POST" | "PUT" | "DELETE",
  path: string,
  body?: unknown,
  query?: Query,
): Promise<T> {
  const text = await (await ask(method, path, query, body)).text();
  return (text ? JSON.parse(text) : null) as T;
}

/**
 * Send a file as a form, which keeps its name. `fetch` tells nothing of how far an upload is, so this is the older way.
 *
 * Raises: Problem; with the status -1 if `signal` ended it.
 */
export function upload<T>(
  path: string,
  file: Blob,
  name: string,
  options: { query?: Query; signal?: AbortSignal; onProgress?: (share: number) => void } = {},
): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path, options.query));
    for (const [key, value] of Object.entries(OWN)) request.setRequestHeader(key, value);
    request.upload.onprogress = (event) => options.onProgress?.(event.total ? event.loaded / event.total : 0);
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) resolve(JSON.parse(request.responseText) as T);
      else reject(problemOf(request.status, request.responseText, request.getResponseHeader("retry-after")));
    };
    request.onerror = () => reject(new Problem(0, ""));
    request.onabort = () => reject(new Problem(-1, ""));
    options.signal?.addEventListener("abort", () => request.abort());
    const form = new FormData();
    form.append("file", file, name);
    request.send(form);
  });
}

function problemOf(status: number, body: string, retryAfter: string | null): Problem {
  const seconds = retryAfter === null ? null : Number(retryAfter);
  try {
    const { reason, cure } = JSON.parse(body) as { reason: string; cure: string | null };
    return new Problem(status, reason, cure, seconds);
  } catch {
    return new Problem(status, `HTTP ${status}`, null, seconds);
  }
}
