// Starts the page: views, language, pictures dropped or pasted anywhere, the footer.

import { classifyPicture, startClassify } from "./classify.js";
import { startDetail } from "./detail.js";
import { $, ServiceError, call, firstPicture } from "./dom.js";
import { number, preferredLanguage, remember, setLanguage, t } from "./i18n.js";
import { fromAddress, notice, relabel, searchPicture, startSearch } from "./search.js";

const VIEWS = ["search", "classify"];
let view = "search";
let index = null;

function showView(name, { focus = false } = {}) {
  view = name;
  for (const one of VIEWS) {
    const chosen = one === name;
    $(`view-${one}`).hidden = !chosen;
    $(`tab-${one}`).setAttribute("aria-selected", chosen);
    $(`tab-${one}`).tabIndex = chosen ? 0 : -1;
  }
  if (focus) $(`tab-${name}`).focus();
}

function route() {
  if (location.hash === "#classify") {
    showView("classify");
    return;
  }
  showView("search");
  fromAddress();
}

function takePicture(file) {
  if (!file) {
    const box = $(view === "classify" ? "classify-notice" : "notice");
    notice(box, new ServiceError({ title: t("notPicture"), detail: t("notPictureText") }));
    return;
  }
  if (view === "classify") classifyPicture(file);
  else searchPicture(file);
}

function speak(code) {
  setLanguage(code);
  $("language").textContent = t("other");
  $("language").lang = t("otherCode");
  relabel();
  about();
}

function about() {
  if (!index) return;
  $("about").textContent = t("about", index.version, number(index.images), number(index.texts), index.model);
}

async function loadIndex() {
  try {
    index = await call("/v1/index");
    about();
  } catch {
    // the footer stays empty; the first search says what is wrong
  }
}

function keys(event) {
  const typing = event.target.matches("input:not([type=radio]):not([type=checkbox]), textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !$("detail").open) {
    event.preventDefault();
    showView("search");
    $("query").focus();
    $("query").select();
  } else if (event.key === "Escape" && event.target.closest?.("#results")) {
    $("query").focus();
  } else if (event.target.matches?.("[role=tab]") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    showView(view === "search" ? "classify" : "search", { focus: true });
  }
}

function startDrops() {
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  window.addEventListener("dragenter", (event) => {
    if (!files(event)) return;
    depth += 1;
    $("dropzone").hidden = view === "classify";
    $("drop").classList.add("over");
  });
  window.addEventListener("dragleave", (event) => {
    if (!files(event)) return;
    depth = Math.max(0, depth - 1);
    if (!depth) endDrag();
  });
  window.addEventListener("dragover", (event) => files(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    endDrag();
    takePicture(firstPicture(event.dataTransfer));
  });
  window.addEventListener("paste", (event) => {
    const file = firstPicture(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    takePicture(file);
  });
  const endDrag = () => {
    $("dropzone").hidden = true;
    $("drop").classList.remove("over");
  };
}

startSearch();
startDetail();
startClassify();
startDrops();
document.addEventListener("keydown", keys);
$("tab-search").addEventListener("click", () => {
  showView("search");
  if (location.hash === "#classify") history.pushState(null, "", "#");
});
$("tab-classify").addEventListener("click", () => {
  showView("classify");
  history.pushState(null, "", "#classify");
});
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", "#");
  route();
  $("query").focus();
});
$("language").addEventListener("click", () => {
  remember("language", t("otherCode"));
  speak(t("otherCode"));
});
window.addEventListener("popstate", route);
speak(preferredLanguage());
route();
loadIndex();
