// Starts the page: views, the address, language, what is served, the footer.

import { startAccess } from "./access.js";
import * as classify from "./classify.js";
import * as compare from "./compare.js";
import { startDetail } from "./detail.js";
import { $, element } from "./dom.js";
import { startDrops } from "./drops.js";
import { relabelFilters, startFilters } from "./filters.js";
import { number, preferredLanguage, remember, setLanguage, t } from "./i18n.js";
import * as indexView from "./indexview.js";
import { relabelKeys, startKeys } from "./keys.js";
import { loadLabelSets, relabelSets } from "./labelsets.js";
import { notPicture, notice } from "./notices.js";
import { drawParts, drawSuggestions, startParts } from "./parts.js";
import { asked, change, fromAddress, onAsked, showPicture, toAddress } from "./query.js";
import * as search from "./search.js";
import { info, loadServed } from "./served.js";
import { showTheme, startTheme } from "./theme.js";

const VIEWS = { search, compare, classify, index: indexView };
const ASKING = ["search", "compare"];
let view = null;
// while words are typed, the address they make replaces itself instead of piling up
let typingOn = false;

// -- views and the address ---------------------------------------------------------------------

function showView(name) {
  if (view === name) return;
  const before = view;
  view = name;
  document.body.dataset.view = name;
  $("asking").hidden = !ASKING.includes(name);
  for (const one of Object.keys(VIEWS)) $(`view-${one}`).hidden = one !== name;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("status").hidden = name !== "search";
  $("index-pick").classList.toggle("off", name === "compare");
  if (before) VIEWS[before].activate(false);
  VIEWS[name].activate(true);
}

function addressOf(name) {
  const address = ASKING.includes(name) ? toAddress().toString() : "";
  return address ? `#${name}?${address}` : name === "search" ? "#" : `#${name}`;
}

function goTo(name) {
  const address = addressOf(name);
  if (address !== (location.hash || "#")) history.pushState(null, "", address);
  typingOn = false;
  showView(name);
}

/** After '#', because what follows it is never sent to the service nor logged by a proxy. */
function writeAddress({ typing = false, quiet = false }) {
  if (quiet || !ASKING.includes(view)) {
    typingOn = typing;
    return;
  }
  const address = addressOf(view);
  if (address === (location.hash || "#")) return;
  if (typing && typingOn) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  typingOn = typing;
}

function readAddress() {
  const [, name, rest] = /^#?([a-z]*)\??(.*)$/s.exec(location.hash) ?? ["", "", ""];
  const wanted = name in VIEWS ? name : "search";
  typingOn = false;
  if (ASKING.includes(wanted)) fromAddress(new URLSearchParams(rest));
  showView(wanted);
}

// -- target and index --------------------------------------------------------------------------

function drawChoices() {
  for (const radio of document.getElementsByName("target")) radio.checked = radio.value === asked.target;
  for (const name of ["hybrid", "distinct"]) $(name).checked = asked[name];
  if ($("index-name").options.length) $("index-name").value = asked.index ?? $("index-name").options[0].value;
}

function startChoices() {
  onAsked(drawChoices);
  for (const radio of document.getElementsByName("target")) {
    radio.addEventListener("change", () => change({ target: radio.value }));
  }
  for (const name of ["hybrid", "distinct"]) {
    $(name).addEventListener("change", () => change({ [name]: $(name).checked }));
  }
  $("index-name").addEventListener("change", () => {
    const first = $("index-name").selectedIndex === 0;
    // the fields of one index mean nothing to another
    change({ index: first ? null : $("index-name").value, filters: {} });
    about();
  });
}

async function loadAll() {
  const names = (await loadServed()).map((one) => one.name);
  $("index-name").replaceChildren(...names.map((name) => element("option", { value: name, text: name })));
  $("index-pick").hidden = names.length < 2;
  drawChoices();
  document.querySelector('.views a[data-view="compare"]').hidden = !compare.offerCompare();
  about();
  await loadLabelSets();
  if (view !== "search") VIEWS[view].activate(true);
}

async function about() {
  const known = await info(asked.index).catch(() => null);
  $("about").textContent = known ? t("about", known.version, number(known.images), number(known.texts), known.model) : "";
}

// -- language, pictures, start -----------------------------------------------------------------

function speak(code) {
  setLanguage(code);
  $("language").textContent = t("other");
  $("language").lang = t("otherCode");
  showTheme();
  drawSuggestions();
  drawParts();
  relabelKeys();
  relabelSets();
  relabelFilters();
  about();
  for (const one of Object.values(VIEWS)) one.relabel(view);
}

function takePicture(file) {
  if (view === "classify") {
    if (file) classify.classifyPicture(file);
    else notice($("classify-notice"), notPicture());
    return;
  }
  if (!ASKING.includes(view)) goTo("search");
  if (file) showPicture(file);
  else notice($("notice"), notPicture());
}

startAccess();
onAsked(writeAddress);
startParts();
startChoices();
startFilters();
search.startSearch();
compare.startCompare();
classify.startClassify();
startDetail();
startTheme();
startDrops({ take: takePicture, overlay: () => view !== "classify" });
startKeys({
  show: () => ASKING.includes(view) || goTo("search"),
  views: () => [...document.querySelectorAll(".views a:not([hidden])")],
});
for (const link of document.querySelectorAll(".views a")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    goTo(link.dataset.view);
  });
}
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  goTo("search");
  change({ parts: [], words: "", filters: {}, target: "images" });
  $("query").focus();
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.querySelector(".grid button.card[tabindex='0']")?.focus() ?? $("main").focus();
});
$("language").addEventListener("click", () => {
  remember("language", t("otherCode"));
  speak(t("otherCode"));
});
window.addEventListener("popstate", readAddress);
speak(preferredLanguage());
readAddress();
loadAll();
