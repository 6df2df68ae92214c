// Comfort on top of pages that work without it: pictures by drop and paste, keys, the player.
"use strict";

document.documentElement.classList.add("scripted");

const byId = (id) => document.getElementById(id);

// --- Waiting -----------------------------------------------------------------------------------

// Only what takes a while is worth a sign: an answer that is there at once would make it flicker.
const WAIT_MS = 150;
let waiting = 0;
const showBusy = () => { waiting = waiting || setTimeout(() => { byId("busy").hidden = false; }, WAIT_MS); };
document.addEventListener("submit", showBusy);
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
  const filters = new URLSearchParams(new FormData(byId("search")));
  filters.delete("q");
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
  // Fields that were left empty need not be in the address.
  byId("search").addEventListener("submit", () => {
    for (const input of byId("search").elements) if (input.name && !input.value) input.disabled = true;
  });
  window.addEventListener("pageshow", () => {
    for (const input of byId("search").elements) input.disabled = false;
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

// --- Player ------------------------------------------------------------------------------------

const player = byId("player");

if (player) {
  const video = byId("video");
  const duration = Number(player.dataset.duration);
  const frames = [...document.querySelectorAll(".strip a")];
  const moments = [...document.querySelectorAll(".moment")];
  const track = document.querySelector(".track");
  let wanted = Number(player.dataset.start);
  let playable = true;

  function showMoment(seconds) {
    byId("cursor").setAttribute("x", String(1000 * seconds / duration));
    const inside = (start, end) => start <= seconds && seconds < end;
    const current = moments.find((m) => inside(Number(m.dataset.start), Number(m.dataset.end)));
    for (const moment of moments) moment.classList.toggle("current", moment === current);
    for (const frame of frames) {
      const time = Number(frame.dataset.time);
      const marked = Boolean(current) && Number(current.dataset.start) <= time
        && time < Number(current.dataset.end);
      frame.parentElement.classList.toggle("current", marked);
      if (marked) frame.setAttribute("aria-current", "true");
      else frame.removeAttribute("aria-current");
    }
    if (byId("more")) {
      const address = new URL(byId("more").href);
      address.searchParams.set("seconds", seconds.toFixed(2));
      byId("more").href = address.href;
    }
  }

  function showStill(seconds) {
    const distance = (frame) => Math.abs(Number(frame.dataset.time) - seconds);
    const nearest = frames.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    if (nearest) byId("picture-at").src = nearest.querySelector("img").dataset.picture;
  }

  function goTo(seconds, play) {
    wanted = seconds;
    history.replaceState(null, "", `?t=${seconds}`);
    showMoment(seconds);
    if (!playable) return showStill(seconds);
    video.currentTime = seconds;
    if (play) video.play().catch(() => {});
  }

  function giveUp() {
    playable = false;
    video.hidden = true;
    video.style.display = "none";
    byId("still").hidden = false;
    showStill(wanted);
  }

  video.addEventListener("error", giveUp);
  if (video.error) giveUp();
  video.addEventListener("loadedmetadata", () => {
    if (!video.videoWidth) return giveUp(); // sound alone: the picture's codec is not known here
    if (Math.abs(video.currentTime - wanted) > 0.05) video.currentTime = wanted;
    // A click on a hit is a wish to see it; where the browser forbids it, the button remains.
    video.play().catch(() => {});
  });
  video.addEventListener("timeupdate", () => { if (!video.seeking) showMoment(video.currentTime); });
  for (const frame of frames) {
    frame.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      goTo(Number(frame.dataset.time), true);
    });
  }
  track.addEventListener("click", (event) => {
    const box = track.getBoundingClientRect();
    const seconds = duration * (event.clientX - box.left) / box.width;
    const moment = event.target.closest(".moment");
    goTo(moment ? Number(moment.dataset.start) : Math.round(seconds * 10) / 10, true);
  });
  // Without the mouse: play, go from frame to frame, look for more, go back.
  function step(by) {
    const times = frames.map((frame) => Number(frame.dataset.time));
    const now = playable && !video.seeking ? video.currentTime : wanted;
    const next = by > 0 ? times.find((time) => time > now + 0.05)
      : times.findLast((time) => time < now - 0.05);
    if (next === undefined) return;
    if (playable) video.pause();
    goTo(next, false);
    frames[times.indexOf(next)].scrollIntoView({ block: "nearest", inline: "center" });
  }
  const actions = {
    j: () => step(-1),
    l: () => step(1),
    k: () => { if (playable) { if (video.paused) video.play().catch(() => {}); else video.pause(); } },
    m: () => byId("more")?.click(),
    Escape: () => byId("back")?.click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.activeElement.matches("input, textarea, select") || document.fullscreenElement) return;
    actions[event.key]?.();
  });
  document.querySelector(".strip .current")?.scrollIntoView({ block: "nearest", inline: "center" });
}
