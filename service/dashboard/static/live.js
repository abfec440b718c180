// An open page renews itself: the server renders it again, and <main> takes the place of the one shown.
"use strict";

const PAUSE_MAX_MS = 30000;

function isBusy(live) {
  const selection = document.getSelection();
  const selects = selection !== null && !selection.isCollapsed && live.contains(selection.anchorNode);
  const types = document.activeElement !== null && document.activeElement.matches("input, select");
  return document.hidden || selects || types;
}

async function fetchPage() {
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
      const fresh = await fetchPage();
      const focused = live.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      for (const id of ["live", "as-of"]) document.getElementById(id).replaceWith(document.adoptNode(fresh.getElementById(id)));
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

// Replies appear while they are written, beside what renews itself.
function listen(replies) {
  const source = new EventSource(`/events/${replies.dataset.event}/stream`);
  const shown = new Map();
  function text({ step, call }) {
    const key = `${step} ${call}`;
    if (!shown.has(key)) {
      const title = document.createElement("h2");
      title.append("Reply ", Object.assign(document.createElement("small"), { textContent: `in step ${step}` }));
      shown.set(key, document.createElement("pre"));
      replies.append(title, shown.get(key));
    }
    return shown.get(key);
  }
  source.addEventListener("token", (message) => { const token = JSON.parse(message.data); text(token).append(token.text); });
  source.addEventListener("restart", (message) => text(JSON.parse(message.data)).replaceChildren());
  source.addEventListener("end", () => source.close());
}

const replies = document.getElementById("replies");
if (replies) listen(replies);
