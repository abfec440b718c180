// An open page renews itself: the server renders it again, and <main> takes the place of the one shown.
"use strict";

const PAUSE_MAX_MS = 30000;

function isBusy(live) {
  const selection = document.getSelection();
  const selects = selection !== null && !selection.isCollapsed && live.contains(selection.anchorNode);
  const types = document.activeElement !== null && document.activeElement.matches("input, select");
  return document.hidden || selects || types;
}

async function fetched() {
  const response = await fetch(location.href, { signal: AbortSignal.timeout(10000) });
  if (response.redirected) location.assign(response.url); // the session is over
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

async function renew(pauseMs) {
  const live = document.getElementById("live");
  const everyMs = Number(live.dataset.liveMs);
  if (!everyMs) return;
  try {
    if (!isBusy(live)) {
      const fresh = await fetched();
      const focused = live.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      live.replaceWith(document.adoptNode(fresh.getElementById("live")));
      document.title = fresh.title;
      if (focused) document.querySelector(`main a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    }
    setTimeout(renew, everyMs, everyMs);
  } catch {
    const longerMs = Math.min(2 * pauseMs, PAUSE_MAX_MS);
    setTimeout(renew, longerMs, longerMs);
  }
}

setTimeout(renew, 2000, 2000);
