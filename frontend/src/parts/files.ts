// Files from a drop, a choice or the clipboard, folders with all that is in them.

import type { NamedFile } from "../state/queue";

/** Files of an input; in a chosen folder they have their path as the name. */
export function chosenFiles(files: FileList | null): NamedFile[] {
  return [...(files ?? [])].map((file) => ({
    file,
    name: file.webkitRelativePath || file.name,
    chosen: !file.webkitRelativePath,
  }));
}

/** What was dropped or pasted. */
export async function droppedFiles(data: DataTransfer): Promise<NamedFile[]> {
  // The list is empty after the first await: what is in it is taken now.
  const entries = [...data.items].map((item) => ({ entry: item.webkitGetAsEntry?.() ?? null, file: item.getAsFile() }));
  const found: NamedFile[] = [];
  for (const { entry, file } of entries) {
    if (entry?.isDirectory) found.push(...(await filesOf(entry as FileSystemDirectoryEntry)));
    else if (file) found.push({ file, name: file.name, chosen: true });
  }
  return found;
}

async function filesOf(folder: FileSystemDirectoryEntry): Promise<NamedFile[]> {
  const found: NamedFile[] = [];
  const reader = folder.createReader();
  for (;;) {
    // A reader gives a hundred at a time, and none when there are no more.
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found;
    for (const entry of entries) {
      if (entry.isDirectory) found.push(...(await filesOf(entry as FileSystemDirectoryEntry)));
      else found.push({ file: await fileOf(entry as FileSystemFileEntry), name: entry.fullPath.slice(1), chosen: false });
    }
  }
}

function fileOf(entry: FileSystemFileEntry): Promise<File> {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}
