// The player: the moment that was found, the strip of frames, and files that no browser plays.
"use strict";

const player = byId("player");

if (player) {
  const CLIP_SECONDS = 30, LEAD_SECONDS = 5, STRIP_FRAMES = 24, POLL_MS = 1000;
  const video = byId("video");
  const api = `/api/videos/${player.dataset.id}`;
  const duration = Number(player.dataset.duration);
  const isShort = duration <= CLIP_SECONDS;
  const leastSpan = Number(player.dataset.leastSpan);
  // Times count from the first frame. The upload's own clock, which is shown, may begin before it.
  const offset = Number(player.dataset.offset);
  const foundStart = Number(player.dataset.foundStart ?? NaN);
  const foundEnd = Number(player.dataset.foundEnd ?? NaN);
  const moments = [...document.querySelectorAll(".moment")];
  const track = document.querySelector(".track");
  let span = Number(player.dataset.span);
  let wanted = Number(player.dataset.start);
  // What plays: the upload, a clip of some seconds of it, all of it converted, or stored frames.
  let source = "upload";
  let clipStart = -offset, clipEnd = duration;
  let request = 0; // the last clip that was asked for

  const frames = () => [...document.querySelectorAll(".strip a")];
  const now = () => (source === "frames" || video.seeking || !video.readyState
    ? wanted : Math.max(0, clipStart + video.currentTime));
  const shownTime = (seconds) => {
    const tenths = Math.round((seconds + offset) * 10), pad = (n) => String(n).padStart(2, "0");
    const clock = `${pad(Math.floor(tenths / 10) % 60)}.${tenths % 10}`;
    const minutes = Math.floor(tenths / 600);
    return minutes < 60 ? `${minutes}:${clock}` : `${Math.floor(minutes / 60)}:${pad(minutes % 60)}:${clock}`;
  };
  const play = () => video.play().catch(() => {}); // where the browser forbids it, the button remains

  // --- What is marked ---------------------------------------------------------------------------

  function here(seconds) {
    const address = new URL(location.href);
    address.searchParams.set("t", String(Math.round(seconds * 1000) / 1000));
    return address;
  }

  function showTime(seconds) {
    byId("cursor").setAttribute("x", String(1000 * seconds / duration));
    const inside = (start, end) => start <= seconds && seconds < end;
    for (const moment of moments) {
      const current = inside(Number(moment.dataset.start), Number(moment.dataset.end));
      moment.classList.toggle("current", current);
    }
    const times = frames().map((frame) => Number(frame.dataset.time));
    const at = times.findLastIndex((time) => time <= seconds + 0.001);
    frames().forEach((frame, index) => {
      frame.parentElement.classList.toggle("now", index === at);
      if (index === at) frame.setAttribute("aria-current", "true");
      else frame.removeAttribute("aria-current");
    });
    if (byId("more")) {
      const address = new URL(byId("more").href);
      address.searchParams.set("seconds", seconds.toFixed(2));
      byId("more").href = address.href;
    }
  }

  // --- The strip --------------------------------------------------------------------------------

  let stripStart = NaN, stripEnd = NaN, loading = Promise.resolve();

  async function framesOf(start, end, limit) {
    const answer = await ask(`${api}/frames?from=${Math.max(0, start)}&to=${end}&limit=${limit}`);
    return answer.ok ? (await answer.json()).frames : null;
  }

  async function loadStrip(seconds) {
    const start = Math.min(Math.max(0, seconds - span / 2), duration - span);
    const before = [stripStart, stripEnd];
    [stripStart, stripEnd] = [start, start + span];
    const found = await framesOf(start, start + span + 0.001, STRIP_FRAMES);
    if (start !== stripStart) return; // another one was asked for meanwhile
    if (!found) { [stripStart, stripEnd] = before; return; }
    byId("strip").replaceChildren(...found.map((frame) => {
      const item = document.createElement("li"), link = document.createElement("a");
      const picture = new Image(160, 90), time = document.createElement("span");
      link.href = here(frame.time_seconds).href;
      link.dataset.time = frame.time_seconds;
      Object.assign(picture, { className: "shot", alt: "", src: `${frame.thumbnail_url}?width=160` });
      time.textContent = shownTime(frame.time_seconds);
      const marked = foundStart <= frame.time_seconds && frame.time_seconds < foundEnd;
      item.classList.toggle("current", marked);
      link.append(picture, time);
      item.append(link);
      return item;
    }));
    byId("strip-range").textContent = `${shownTime(start)} – ${shownTime(start + span)}`;
    showTime(now());
  }

  function followStrip(seconds) {
    if (!byId("strip") || (stripStart <= seconds && seconds < stripEnd)) return;
    loading = loadStrip(seconds);
  }

  function zoom(factor) {
    const wider = Math.min(Math.max(span * factor, leastSpan), duration);
    if (wider === span || !byId("strip")) return;
    span = wider;
    const address = new URL(location.href);
    address.searchParams.set("span", String(span));
    history.replaceState(null, "", address);
    loading = loadStrip(now());
  }

  // --- What plays -------------------------------------------------------------------------------

  const notice = (text) => {
    byId("notice-text").textContent = text;
    byId("notice").hidden = !text;
  };

  async function showStill(seconds) {
    const near = await framesOf(seconds - leastSpan / 2, seconds + leastSpan / 2 + 0.001, 500) || [];
    const distance = (frame) => Math.abs(frame.time_seconds - seconds);
    const nearest = near.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    if (nearest && wanted === seconds) byId("picture-at").src = nearest.thumbnail_url;
  }

  function showFrames(reason) {
    source = "frames";
    video.removeAttribute("src");
    video.hidden = true;
    byId("still").hidden = false;
    byId("picture-at").src = video.poster;
    byId("convert").hidden = true;
    notice(`${reason} These are its stored frames.`);
    showStill(wanted);
  }

  async function messageOf(answer) {
    try { return (await answer.json()).error.message; } catch { return `status ${answer.status}`; }
  }

  function load(kind, address, start, end, seconds) {
    [source, clipStart, clipEnd, wanted] = [kind, start, end, seconds];
    video.src = address;
  }

  const noteConverted = (lostSound) => notice("This browser cannot play the file: what you watch is "
    + `converted${lostSound ? ", without sound, which cannot be decoded" : ""}.`);

  async function loadClip(seconds) {
    const mine = ++request;
    const start = isShort ? 0 : Math.max(0, Math.floor(seconds) - LEAD_SECONDS);
    const end = start + CLIP_SECONDS;
    const address = `${api}/clip.mp4?from=${start}&to=${end}`;
    wanted = seconds;
    notice("This browser cannot play the file: the moment is being converted …");
    const answer = await ask(address, { headers: { Range: "bytes=0-0" } });
    if (mine !== request) return;
    if (!answer.ok) {
      showFrames(`This browser cannot play the file, and it cannot be converted: ${await messageOf(answer)}.`);
      return;
    }
    noteConverted(answer.headers.get("X-Sound") === "lost");
    byId("convert").hidden = isShort; // all of it is in the clip
    load("clip", address, start, Math.min(end, duration), seconds);
  }

  async function uploadFails() {
    const there = await ask(`${api}/stream`, { method: "HEAD" });
    if (there.status === 404) return showFrames("The upload is gone.");
    if (there.status === 503) return notice(`It stopped: ${NO_ANSWER}.`);
    const whole = await ask(`${api}/playable`);
    const state = whole.ok ? await whole.json() : { state: "absent" };
    if (state.state === "ready") return playWhole(state);
    return loadClip(wanted);
  }

  function playWhole({ url, reason }) {
    noteConverted(Boolean(reason));
    byId("convert").hidden = byId("converted").hidden = true;
    load("whole", url, 0, duration, now());
  }

  async function convert() {
    byId("convert").hidden = true;
    let answer = await ask(`${api}/playable`, { method: "POST" });
    for (;;) {
      if (!answer.ok) break;
      const state = await answer.json();
      byId("converted").value = state.share;
      byId("converted").hidden = state.state !== "making";
      if (state.state === "ready") return playWhole(state);
      if (state.state !== "making") return notice(`It cannot be converted: ${state.reason}.`);
      await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
      answer = await ask(`${api}/playable`);
    }
    notice(`It cannot be converted: ${await messageOf(answer)}.`);
    byId("convert").hidden = false;
  }

  function fails() {
    if (source === "upload") return uploadFails();
    if (source !== "frames") showFrames("This browser cannot play the converted file.");
  }

  function goTo(seconds, plays) {
    wanted = seconds;
    history.replaceState(null, "", here(seconds));
    showTime(seconds);
    followStrip(seconds);
    if (source === "frames") return showStill(seconds);
    if (source === "clip" && !(clipStart <= seconds && seconds < clipEnd)) return loadClip(seconds);
    video.currentTime = seconds - clipStart;
    if (plays) play();
  }

  video.addEventListener("error", fails);
  if (video.error) fails();
  video.addEventListener("loadedmetadata", () => {
    if (!video.videoWidth) return fails(); // sound alone: the picture's codec is not known here
    if (Math.abs(clipStart + video.currentTime - wanted) > 0.05) video.currentTime = wanted - clipStart;
    play(); // a click on a hit is a wish to see it
  });
  video.addEventListener("timeupdate", () => {
    if (video.seeking || source === "frames") return;
    showTime(now());
    followStrip(now());
  });
  video.addEventListener("ended", () => { if (source === "clip" && clipEnd < duration) loadClip(clipEnd); });
  byId("convert").addEventListener("click", convert);

  // --- Mouse and keys ---------------------------------------------------------------------------

  const plain = (event) => !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
  function onClick(element, action) {
    element?.addEventListener("click", (event) => {
      if (!plain(event)) return;
      event.preventDefault();
      action(event);
    });
  }
  const replay = () => { if (foundEnd > foundStart) goTo(foundStart, true); };
  onClick(byId("replay"), replay);
  onClick(byId("zoom-in"), () => zoom(0.5));
  onClick(byId("zoom-out"), () => zoom(2));
  byId("strip")?.addEventListener("click", (event) => {
    const frame = event.target.closest("a");
    if (!frame || !plain(event)) return;
    event.preventDefault();
    goTo(Number(frame.dataset.time), true);
  });
  track.addEventListener("click", (event) => {
    const box = track.getBoundingClientRect();
    const seconds = duration * (event.clientX - box.left) / box.width;
    const moment = event.target.closest(".moment");
    goTo(moment ? Number(moment.dataset.start) : Math.round(seconds * 10) / 10, true);
  });
  const copy = byId("copy");
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    const address = here(now()).href;
    history.replaceState(null, "", address);
    copy.textContent = await copied(address, copy) ? "Copied" : "Copy it from the address bar";
    setTimeout(() => { copy.textContent = "Copy link"; }, 2000);
  });
  const next = (by) => {
    const times = frames().map((frame) => Number(frame.dataset.time));
    return by > 0 ? times.find((time) => time > now() + 0.05)
      : times.findLast((time) => time < now() - 0.05);
  };
  async function step(by) {
    if (next(by) === undefined) loading = loadStrip(now());
    await loading;
    const seconds = next(by);
    if (seconds === undefined) return;
    video.pause();
    goTo(seconds, false);
    document.querySelector(".strip .now")?.scrollIntoView({ block: "nearest", inline: "center" });
  }
  const actions = {
    j: () => step(-1),
    l: () => step(1),
    k: () => { if (video.paused) play(); else video.pause(); },
    m: () => byId("more")?.click(),
    r: replay,
    "+": () => zoom(0.5),
    "=": () => zoom(0.5), // the same key without Shift, on many keyboards
    "-": () => zoom(2),
    Escape: () => byId("back")?.click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.activeElement.matches("input, textarea, select") || document.fullscreenElement) return;
    actions[event.key]?.();
  });

  if (byId("strip")) {
    stripStart = Math.min(Math.max(0, wanted - span / 2), duration - span);
    stripEnd = stripStart + span;
    document.querySelector(".strip .current")?.scrollIntoView({ block: "nearest", inline: "center" });
  }
  showTime(wanted);
}
