// Pictures on their way to the service: large ones made smaller first, and kept for this tab, so
// that a search with a picture can be gone back to and reloaded.

import { ServiceError } from "./api.js";

// no model sees more than a few hundred pixels a side; a phone's 48 megapixels would take longer to
// send and decode than a search may
const LONG_SIDE = 1600;
const PLENTY_OF_PIXELS = 5e6;
const PLENTY_OF_BYTES = 1.5e6;
const KEPT = "diptych.picture.";
const KEPT_MOST = 4;

const encoded = new WeakMap();
const names = new WeakMap();
const files = new Map();

/** A picture as a data URI: as chosen, or smaller where it is large; refused if it cannot be read. */
export function dataUri(file) {
  if (!encoded.has(file)) encoded.set(file, smaller(file).then(read));
  return encoded.get(file);
}

function read(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(`data:application/octet-stream;base64,${reader.result.split(",", 2)[1] ?? ""}`);
    reader.onerror = () => reject(new ServiceError({ code: "image-undecodable", status: 422 }));
    reader.readAsDataURL(blob);
  });
}

/** What the browser cannot decode goes as it is: the service may, and says so if it cannot. */
async function smaller(file) {
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = reject;
      image.src = url;
    });
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    if (width * height <= PLENTY_OF_PIXELS && file.size <= PLENTY_OF_BYTES) return file;
    const scale = Math.min(1, LONG_SIDE / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    // JPEG has no transparency; a browser that writes no WebP writes PNG
    const kind = file.type === "image/jpeg" ? "image/jpeg" : "image/webp";
    const made = await new Promise((resolve) => canvas.toBlob(resolve, kind, 0.95));
    return made && made.size < file.size ? made : file;
  } catch {
    return file;
  } finally {
    URL.revokeObjectURL(url);
  }
}

// -- kept for this tab -------------------------------------------------------------------------

/** What an address calls a picture. Its bytes are kept as they are sent, as far as there is room. */
export function nameOfPicture(file) {
  if (!names.has(file)) {
    const name = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
    names.set(file, name);
    files.set(name, file);
    dataUri(file).then((uri) => keep(name, uri), () => {});
  }
  return names.get(file);
}

function keep(name, uri) {
  try {
    const kept = Object.keys(sessionStorage).filter((key) => key.startsWith(KEPT)).sort();
    while (kept.length >= KEPT_MOST) sessionStorage.removeItem(kept.shift());
    for (;;) {
      try {
        sessionStorage.setItem(KEPT + name, uri);
        return;
      } catch {
        if (!kept.length) return; // larger than all the room there is
        sessionStorage.removeItem(kept.shift());
      }
    }
  } catch {
    // a browser may forbid storage
  }
}

/** The picture that an address names; null where this tab does not have it. */
export function pictureNamed(name) {
  if (!files.has(name)) {
    try {
      const uri = sessionStorage.getItem(KEPT + name);
      const bytes = Uint8Array.from(atob(uri.split(",", 2)[1]), (letter) => letter.charCodeAt(0));
      const file = new Blob([bytes]);
      encoded.set(file, Promise.resolve(uri));
      names.set(file, name);
      files.set(name, file);
    } catch {
      return null;
    }
  }
  return files.get(name);
}
