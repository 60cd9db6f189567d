// Pictures dropped or pasted anywhere on the page.

import { $, firstPicture } from "./dom.js";

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

/** `take` gets the picture, or undefined when what came is none. */
export function startDrops({ take, overlay }) {
  let depth = 0;
  const end = () => {
    depth = 0;
    $("dropzone").hidden = true;
    $("drop").classList.remove("over");
  };
  window.addEventListener("dragenter", (event) => {
    if (!holdsFiles(event)) return;
    depth += 1;
    $("dropzone").hidden = !overlay();
    $("drop").classList.add("over");
  });
  window.addEventListener("dragleave", (event) => {
    if (!holdsFiles(event)) return;
    depth -= 1;
    if (depth <= 0) end();
  });
  window.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    end();
    take(firstPicture(event.dataTransfer));
  });
  window.addEventListener("paste", (event) => {
    const file = firstPicture(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}
