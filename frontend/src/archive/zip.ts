// The directory of a ZIP file in this browser, so that pictures which the server looked at can be shown: it keeps none.
//
// PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end, with ZIP64).

const END = 0x06054b50;
const END_64 = 0x06064b50;
const LOCATOR_64 = 0x07064b50;
const ENTRY = 0x02014b50;
const MOST_END = 22 + 0xffff + 20;
const FULL = 0xffffffff;
const STORED = 0;
const DEFLATED = 8;

/** Its files, each with what opens it. One that cannot be read here is left out. Raises: Error, if it is no ZIP file. */
export async function readZip(file: Blob): Promise<Map<string, () => Promise<Blob>>> {
  const { offset, size } = await findDirectory(file);
  const directory = new DataView(await file.slice(offset, offset + size).arrayBuffer());
  const entries = new Map<string, () => Promise<Blob>>();
  for (let at = 0; at + 46 <= directory.byteLength && directory.getUint32(at, true) === ENTRY; ) {
    const method = directory.getUint16(at + 10, true);
    const [name, extra, comment] = [28, 30, 32].map((field) => directory.getUint16(at + field, true)) as [number, number, number];
    const bytes = new Uint8Array(directory.buffer, at + 46, name);
    const place = placeOf(directory, at, at + 46 + name, extra);
    const isUtf8 = (directory.getUint16(at + 8, true) & 0x800) !== 0;
    // A name in an old alphabet is the server's to read: such a file has boxes, and no picture here.
    const readable = isUtf8 || bytes.every((byte) => byte < 0x80);
    if (readable && (method === STORED || method === DEFLATED)) {
      entries.set(new TextDecoder().decode(bytes), () => open(file, place.offset, place.packed, method));
    }
    at += 46 + name + extra + comment;
  }
  return entries;
}

async function findDirectory(file: Blob): Promise<{ offset: number; size: number }> {
  const from = Math.max(file.size - MOST_END, 0);
  const end = new DataView(await file.slice(from).arrayBuffer());
  for (let at = end.byteLength - 22; at >= 0; at -= 1) {
    if (end.getUint32(at, true) !== END) continue;
    const size = end.getUint32(at + 12, true);
    const offset = end.getUint32(at + 16, true);
    if (offset !== FULL || at < 20 || end.getUint32(at - 20, true) !== LOCATOR_64) return { offset, size };
    const where = Number(end.getBigUint64(at - 20 + 8, true));
    const large = new DataView(await file.slice(where, where + 56).arrayBuffer());
    if (large.getUint32(0, true) !== END_64) break;
    return { size: Number(large.getBigUint64(40, true)), offset: Number(large.getBigUint64(48, true)) };
  }
  throw new Error("is no ZIP archive");
}

/** Where an entry lies and how long it is; with ZIP64 both may stand in its extra field. */
function placeOf(view: DataView, at: number, extraAt: number, extra: number): { offset: number; packed: number } {
  let packed = view.getUint32(at + 20, true);
  let offset = view.getUint32(at + 42, true);
  for (let field = extraAt; field + 4 <= extraAt + extra; field += 4 + view.getUint16(field + 2, true)) {
    if (view.getUint16(field, true) !== 1) continue;
    let value = field + 4 + (view.getUint32(at + 24, true) === FULL ? 8 : 0);
    if (packed === FULL) {
      packed = Number(view.getBigUint64(value, true));
      value += 8;
    }
    if (offset === FULL) offset = Number(view.getBigUint64(value, true));
  }
  return { offset, packed };
}

async function open(file: Blob, offset: number, packed: number, method: number): Promise<Blob> {
  const header = new DataView(await file.slice(offset, offset + 30).arrayBuffer());
  const from = offset + 30 + header.getUint16(26, true) + header.getUint16(28, true);
  const bytes = file.slice(from, from + packed);
  if (method === STORED) return bytes;
  return new Response(bytes.stream().pipeThrough(new DecompressionStream("deflate-raw"))).blob();
}
