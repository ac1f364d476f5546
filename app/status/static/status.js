// Keeps the page up to date: asks for it anew, and replaces the parts that changed. Without this script it is a page
// that is read again by hand.
"use strict";

const SECONDS = 3;
const pause = document.getElementById("pause");
const lost = document.getElementById("lost");
let paused = false;
let lastGood = Date.now();

pause.hidden = false;
pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on updating" : "Pause updates";
  if (!paused) update();
});

function swap(old, fresh) {
  // Who reads or stands here must not be thrown out.
  const reachable = "a, button, [tabindex]";
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const scrolled = [...old.querySelectorAll(".wide, pre")].map((part) => part.scrollLeft);
  const made = document.importNode(fresh, true);
  const place = focused && [...old.querySelectorAll(reachable)].indexOf(focused);
  old.replaceWith(made);
  [...made.querySelectorAll(".wide, pre")].forEach((part, n) => { part.scrollLeft = scrolled[n] ?? 0; });
  if (!focused) return;
  const choices = [...made.querySelectorAll(reachable)];
  const same = choices.find((one) => focused.href && one.href === focused.href) ?? choices[place];
  same?.focus({ preventScroll: true });
}

function replace(old, fresh) {
  if (old.outerHTML === fresh.outerHTML) return;
  if (old.getAttribute("role") === "status") {
    // A live region speaks when its text changes, not when it is replaced.
    old.className = fresh.className;
    if (old.textContent !== fresh.textContent) old.textContent = fresh.textContent;
    return;
  }
  swap(old, fresh);
}

function apply(fresh) {
  const layout = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.id).join(" ");
  if (layout(document) !== layout(fresh)) {
    // Something came or went: the whole content, once.
    swap(document.querySelector("main"), fresh.querySelector("main"));
    document.getElementById("age").textContent = fresh.getElementById("age").textContent;
    return;
  }
  for (const part of document.querySelectorAll("[data-live]")) replace(part, fresh.getElementById(part.id));
}

async function update() {
  if (paused || document.hidden) return;
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (paused) return;
    apply(fresh);
    lastGood = Date.now();
    lost.hidden = true;
  } catch {
    lost.textContent = "The service does not answer. What you see is from " + new Date(lastGood).toLocaleTimeString() + ".";
    lost.hidden = false;
  }
}

async function go() {
  await update();
  setTimeout(go, SECONDS * 1000);
}

setTimeout(go, SECONDS * 1000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
