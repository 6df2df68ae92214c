// Comfort on top of pages that work without it: pictures by drop and paste, keys.
"use strict";

document.documentElement.classList.add("scripted");

const byId = (id) => document.getElementById(id);

const NO_ANSWER = "the service does not answer; reload the page once it does";

// A service that is being restarted refuses connections: an answer of its own, so that it is said.
async function ask(address, options) {
  try {
    return await fetch(address, options);
  } catch {
    return new Response(JSON.stringify({ error: { message: NO_ANSWER } }), { status: 503 });
  }
}

// --- Waiting -----------------------------------------------------------------------------------

// Only what takes a while is worth a sign: an answer that is there at once would make it flicker.
const WAIT_MS = 150;
let waiting = 0;
const showBusy = () => { waiting = waiting || setTimeout(() => { byId("busy").hidden = false; }, WAIT_MS); };
document.addEventListener("submit", (event) => { if (event.target.id !== "export") showBusy(); });
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/?']");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) showBusy();
});
window.addEventListener("pageshow", () => {
  clearTimeout(waiting);
  waiting = 0;
  byId("busy").hidden = true;
});

// --- Search by picture -------------------------------------------------------------------------

const pictureForm = byId("picture");

function searchByPicture(file) {
  const transfer = new DataTransfer();
  transfer.items.add(file);
  byId("image").files = transfer.files;
  submitPicture();
}

function submitPicture() {
  // The filters of the other form count for pictures too.
  const filters = new URLSearchParams(byId("search") ? new FormData(byId("search")) : "");
  for (const name of ["q", "picture"]) filters.delete(name);
  for (const [name, value] of [...filters]) if (!value) filters.delete(name);
  pictureForm.action = filters.size ? `/?${filters}` : "/";
  showBusy();
  pictureForm.submit();
}

if (pictureForm) {
  const imageOf = (items) => [...(items || [])].find((file) => file.type.startsWith("image/"));
  const curtain = byId("drop");
  byId("image").addEventListener("change", submitPicture);
  document.addEventListener("paste", (event) => {
    const file = imageOf(event.clipboardData?.files);
    if (file) { event.preventDefault(); searchByPicture(file); }
  });
  document.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    curtain.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) curtain.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    curtain.hidden = true;
    const file = imageOf(event.dataTransfer.files);
    if (file) { event.preventDefault(); searchByPicture(file); }
  });
}

if (byId("search")) {
  // Fields that were left empty need not be in the address.
  byId("search").addEventListener("submit", () => {
    for (const input of byId("search").elements) if (input.name && !input.value) input.disabled = true;
  });
  window.addEventListener("pageshow", () => {
    for (const input of byId("search").elements) input.disabled = false;
  });
}

// --- Filters by picking: folders at first, then what the words are a part of ------------------------

const places = document.querySelector("#search [name=videos]");
let placing = 0;

async function offerPlaces() {
  const mine = ++placing, text = places.value.trim();
  const offered = [];
  const folders = await ask("/api/folders");
  if (folders.ok) {
    for (const { folder, videos } of (await folders.json()).folders) {
      if (folder.includes(text) || !text) offered.push([`${folder.replace(/[*?[]/g, "[$&]")}/**`, `${videos} video${videos === 1 ? "" : "s"}`]);
    }
  }
  if (text && !/[*?[]/.test(text)) {
    const found = await ask(`/api/videos?${new URLSearchParams({ name: text, limit: 20 })}`);
    if (found.ok) for (const { video } of (await found.json()).videos) offered.push([video, ""]);
  }
  if (mine !== placing) return;
  byId("places").replaceChildren(...offered.map(([value, label]) => new Option(label, value)));
}
places?.addEventListener("focus", offerPlaces);
let typing = 0;
places?.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(offerPlaces, 150); });

// --- Hits: previews of the moment, choosing ---------------------------------------------------------

const PREVIEW_MS = 600, PREVIEW_FRAMES = 6;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let previews = 0;

async function preview(link) {
  const picture = link.querySelector("img"), mine = String(++previews);
  const { id, start, end } = link.dataset;
  // The pointer may be back before the preview that it left has put the picture back.
  const still = link.dataset.still ??= picture.src;
  link.dataset.previewing = mine;
  const answer = await ask(`/api/videos/${id}/frames?from=${start}&to=${end}&limit=${PREVIEW_FRAMES}`);
  const frames = answer.ok ? (await answer.json()).frames : [];
  for (let at = 0; frames.length > 1 && link.dataset.previewing === mine; at = (at + 1) % frames.length) {
    picture.src = `${frames[at].thumbnail_url}?width=320`;
    await new Promise((resolve) => { setTimeout(resolve, PREVIEW_MS); });
  }
  if (!link.dataset.previewing) picture.src = still;
}
for (const link of document.querySelectorAll(".hit .open")) {
  let timer = 0;
  link.addEventListener("pointerenter", () => {
    if (!calm.matches) timer = setTimeout(() => preview(link), 250);
  });
  link.addEventListener("pointerleave", () => { clearTimeout(timer); delete link.dataset.previewing; });
}

const exportForm = byId("export");
function countChosen() {
  const chosen = document.querySelectorAll("[form=export]:checked").length;
  for (const button of exportForm.querySelectorAll("button")) button.disabled = !chosen;
  byId("chosen").textContent = chosen ? `${chosen} chosen:` : "Choose moments to export them:";
}
if (exportForm) {
  document.addEventListener("change", countChosen);
  window.addEventListener("pageshow", countChosen);
  countChosen();
}

// --- Copying -----------------------------------------------------------------------------------

// The clipboard's own interface is there over HTTPS and on this machine alone, and may be refused.
async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    button.after(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    button.focus();
    return done;
  }
}

for (const button of document.querySelectorAll("[data-copies]")) {
  const said = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const done = await copied(byId(button.dataset.copies).textContent, button);
    button.textContent = done ? "Copied" : "Select it and copy it";
    setTimeout(() => { button.textContent = said; }, 2000);
  });
}

// --- Keys --------------------------------------------------------------------------------------

const isField = (element) => element.matches("input, textarea, select, video");

function moveFocus(links, key) {
  const index = links.indexOf(document.activeElement);
  if (index < 0) return false;
  const columns = links.filter((link) =>
    Math.abs(link.getBoundingClientRect().top - links[0].getBoundingClientRect().top) < 5).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const target = links[index + step];
  if (!target) return false;
  target.focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = isField(document.activeElement);
  if (event.key === "/" && !field && byId("q")) {
    event.preventDefault();
    byId("q").focus();
    byId("q").select();
  } else if (event.key.startsWith("Arrow")) {
    const hits = [...document.querySelectorAll(".hit .open")];
    if (event.key === "ArrowDown" && document.activeElement === byId("q") && hits.length) {
      event.preventDefault();
      hits[0].focus();
      return;
    }
    const strip = [...document.querySelectorAll(".strip a")];
    if (!field && (moveFocus(hits, event.key) || moveFocus(strip, event.key))) event.preventDefault();
  }
});
