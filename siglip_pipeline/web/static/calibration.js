// Keys that answer about one moment after the other.
"use strict";

const moments = [...document.querySelectorAll("#calibration .hit")];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const value = { y: "yes", n: "no", s: "" }[event.key];
  if (value === undefined) return;
  const moment = moments.find((shown) => shown.contains(document.activeElement))
    || moments.find((shown) => !shown.querySelector(":checked"));
  if (!moment) return;
  event.preventDefault();
  for (const input of moment.querySelectorAll("input")) input.checked = input.value === value;
  const next = moments[moments.indexOf(moment) + 1];
  (next ? next.querySelector(".open") : document.querySelector("#calibration button")).focus();
});
