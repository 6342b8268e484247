"use strict";
const {cid, name, ability} = document.body.dataset;
const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Every text from other pages goes through this function, which inserts it as text and never as markup.
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

function plural(count, word) { return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`; }

function seconds(ms) {
  const whole = Math.floor(ms / 1000), pad = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${(ms / 1000).toFixed(1)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${pad(whole % 60)}`;
  return `${Math.floor(whole / 3600)}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
}

/* The conversation: one EventSource. It reconnects by itself and sends the id of the last event that it has seen; the
   server then sends the later ones. It gives up when the response is not a stream, for example a 404. */

let over = false, lost = false, frozen = false, unsure = false;
const source = new EventSource(`/stream/${cid}`);
const listen = (kind, heard) => source.addEventListener(kind, (event) => heard(JSON.parse(event.data)));
listen("hello", showConnected);
source.addEventListener("open", () => {
  if (!lost) return;
  lost = false;
  note("Connected again.");
  showConnected();
});
listen("tick", ({number}) => showTick(number));
listen("said", showMessage);
listen("idle", ({minutes}) => note(`You have said nothing for ${minutes} minutes.`));
listen("frozen", ({seconds}) => {
  showFrozen(true);
  note(`Your handler stands still, for ${seconds} seconds at most. See in the inspector who waits with it.`);
});
listen("thawed", ({seconds}) => {
  showFrozen(false);
  note(`Your handler goes on, after ${seconds} seconds.`);
});
listen("gap", ({missed}) => {
  // A new page would not have the lost events either, but the reader must not believe that this one has all of them.
  note(`Too much happened meanwhile: ${missed === null ? "some of it" : plural(missed, "event")} never reached this page.`);
  unsure = true;
});
listen("bye", ({reason}) => {
  if (reason === "ended") end("This conversation has ended.");
  else if (reason === "replaced") end("This conversation continues in another connection.");
  else if (reason === "shutdown") end("The server has been stopped, and with it this conversation.");
  // "behind": the source connects again, and a gap says how much is lost.
});
source.addEventListener("error", () => {
  if (source.readyState === EventSource.CLOSED) end("This conversation has ended: it was away for too long.");
  else if (!lost) {
    lost = true;
    setStatus("wait", "connection lost, trying again");
    note("The connection is lost; the page tries again.");
  }
});

// Show the state of the handler. The button shows what has been asked for, which may begin later.
function showFrozen(now) {
  frozen = now;
  setFrozen(now);
  showConnected();
}

function showConnected() {
  if (frozen) setStatus("frozen", "handler frozen");
  else setStatus("live", "connected");
}

function setStatus(state, text) {
  if (over) return;
  $("status").dataset.state = state;
  setText($("status"), text);
}

function end(why) {
  if (over) return;
  setStatus("over", "ended");
  over = true;
  source.close();
  $("over-text").textContent = `${why} Reload to start a new one.`;
  $("over").hidden = false;
  const controls = [...$("form").elements, $("freeze"), ...$("steps").children];
  for (const control of controls) control.disabled = true;
  $("reload").focus();
}

let shownTick = 0;
function showTick(number) {
  const rest = String(number % 60).padStart(2, "0");
  $("clock").textContent = `${Math.floor(number / 60)}:${rest}`;
  const hand = $("hand");
  hand.classList.toggle("jumps", number !== shownTick + 1);
  hand.style.transform = `rotate(${number * 6}deg)`;
  shownTick = number;
}

function add(row, always) {
  const log = $("log");
  const atBottom = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  log.append(row);
  while (log.children.length > 300) log.firstElementChild.remove();
  if (atBottom || always) log.scrollTop = log.scrollHeight;
}

function note(text) { add(element("li", "note", text), false); }

function showMessage(message) {
  const mine = message.from === name;
  const time = new Date().toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"});
  add(element("li", mine ? "mine" : "",
    element("p", "meta", `${mine ? "you" : message.from}, ${time}`), element("div", "", message.text)), mine);
}

// Send a request to the server. Returns the response if it succeeds, else undefined after showing the reason.
async function post(what, body) {
  try {
    const answer = await fetch(`/${what}/${cid}`, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
      signal: AbortSignal.timeout(20_000),
    });
    if (answer.ok) return answer;
    if (answer.status === 404) end("This conversation has ended.");
    else note(await answer.text());
  } catch {
    note("The server does not answer. (A browser keeps six connections to one server at most, and each tab needs one.)");
  }
  return undefined;
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text && await post("say", {text})) $("text").value = "";
});
$("reload").addEventListener("click", () => location.reload());

// Closing the tab ends the conversation immediately. A page restored from the browser's cache needs a new one.
addEventListener("pagehide", () => { if (!over) navigator.sendBeacon(`/leave/${cid}`); });
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

/* The controls that this registry offers: freeze, or advance. */

$("freeze-controls").hidden = ability !== "freeze";
$("advance-controls").hidden = ability !== "advance";

function setFrozen(asked) {
  $("freeze").setAttribute("aria-pressed", asked);
  setText($("freeze"), asked ? "Unfreeze it" : "Freeze my handler");
}

$("freeze").addEventListener("click", async () => {
  const wanted = $("freeze").getAttribute("aria-pressed") !== "true";
  setFrozen(wanted); // before the response, because the event "frozen" may arrive earlier
  if (!await post(wanted ? "freeze" : "thaw")) setFrozen(!wanted);
});

$("steps").addEventListener("click", async ({target}) => {
  if (!target.dataset.ms) return;
  if (await post("advance", {ms: Number(target.dataset.ms)})) look(0);
});

/* The inspector: it fetches the registry twice a second and counts down the time left in between. */

const FATES = ["delivered", "failed", "cancelled", "dropped", "timers", "queued", "running"];
const HERE = 6;
const standing = ability === "advance";
const rows = new Map();
let newest = -Infinity;
// By how much this page's clock is ahead of the server's. The least estimate is the best: its response was the fastest.
let ahead = Infinity;

function showRegistry(state) {
  if (state.at_ms < newest) return; // a newer response overtook this one
  newest = state.at_ms;
  ahead = Math.min(ahead, performance.now() - state.at_ms);
  setText($("backend"), state.backend);
  setText($("now"), `Time stands still at ${seconds(state.at_ms)}.`);
  const mine = state.conversations.find((held) => held.name === name);
  if (unsure && mine) {
    unsure = false;
    showFrozen(mine.frozen); // the lost events may include "frozen" or "thawed"
  }
  showLedger(state);
  showDeliveries(state.deliveries);
  showLateness(state.lateness_ms);
  showHere(state);
  showStalls(state.conversations);
  showConversations(state);
}

function showLedger({stats, balanced}) {
  const ledger = $("ledger");
  if (!ledger.firstChild) {
    for (const fate of ["accepted", ...FATES]) {
      const sign = {accepted: "", delivered: "="}[fate] ?? "+";
      ledger.append(element("div", "", element("span", "sign", sign), element("span", "value"), element("span", "label", fate)));
    }
  }
  ["accepted", ...FATES].forEach((fate, index) => {
    const value = ledger.children[index].children[1];
    setText(value, stats[fate].toLocaleString("en"));
    value.classList.toggle("zero", !stats[fate]);
  });
  // While a delivery is running, a figure may lag by the due batch in progress, which is not an error.
  const verdict = balanced ? "yes" : stats.running ? "unknown" : "no";
  $("verdict").dataset.balanced = verdict;
  setText($("verdict"), {yes: "✓ balanced", no: "✗ does not balance", unknown: "… counting"}[verdict]);
}

// One bar for each second; `heights` from 0 to 1. The label says what the bars show.
function showBars(id, heights, text) {
  const figure = $(id);
  const bars = heights.map((height, index) => height > 0 ? `M${index * 4} 60h3v${-Math.max(1, 58 * height)}h-3z` : "");
  figure.querySelector("path").setAttribute("d", bars.join(""));
  setText(figure.querySelector(".small"), text);
  figure.setAttribute("aria-label", `${figure.querySelector(".title").textContent}, the last minute: ${text}`);
}

function showDeliveries(counts) {
  const most = Math.max(...counts);
  showBars("deliveries", counts.map((count) => count / Math.max(4, most)), `${counts.at(-1)} now, max ${most}`);
}

// From 0.1 ms to 10 s, on a logarithmic scale.
const onScale = (ms) => Math.min(1, Math.max(0.02, (Math.log10(ms) + 1) / 5));
for (const [ms, label] of [[1, "1 ms"], [100, "100 ms"]]) {
  const line = element("i");
  line.dataset.label = label;
  line.style.top = `${(60 - 58 * onScale(ms)) / 0.6}%`;
  $("lateness").querySelector(".plot").append(line);
}

function showLateness(values) {
  const known = values.filter((value) => value !== null);
  const text = (ms) => ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
  showBars("lateness", values.map((value) => value === null ? 0 : onScale(value)),
    known.length ? `${text(known.at(-1))} now, max ${text(Math.max(...known))}` : "no tick yet");
}

function showHere({conversations, topics}) {
  const names = conversations.filter(({topics}) => topics.includes("room")).map((held) => held.name);
  const all = topics.room ?? 0;
  const shown = [...names.filter((other) => other === name), ...names.filter((other) => other !== name)].slice(0, HERE);
  const texts = shown.map((other) => other === name ? "you" : other);
  if (all > shown.length) texts.push(`and ${all - shown.length} more`);
  if (!texts.length) texts.push("nobody");
  const list = $("here");
  while (list.children.length > texts.length) list.lastChild.remove();
  while (list.children.length < texts.length) list.append(element("li"));
  texts.forEach((text, index) => {
    setText(list.children[index], text);
    list.children[index].className = text === "you" ? "me" : "";
  });
  setText($("topics"), Object.entries(topics).map(([topic, count]) => `topic ${topic}: ${plural(count, "subscriber")}`).join(", "));
}

function stateOf(held) {
  if (held.frozen) return "frozen";
  if (held.waiting_ms >= 400) return "stalled";
  if (held.pending_flow) return "waiting";
  return held.timers.some(({event}) => event === "gone") ? "cut" : "live";
}

function showStalls(conversations) {
  const frozen = conversations.filter((held) => stateOf(held) === "frozen");
  const stalled = conversations.filter((held) => stateOf(held) === "stalled").length;
  const names = frozen.map((held) => held.name === name ? "yours" : held.name).join(", ");
  const others = stalled ? `Stalled with it: ${plural(stalled, "conversation")}.` : "Nobody stalls with it.";
  setText($("stalls"), frozen.length ? `Frozen: ${names}. ${others}` : stalled ? `${plural(stalled, "conversation")} stalled.` : "No handler is frozen, nobody stalls.");
}

// Only visible rows count down, because with a hundred rows the invisible ones would cost too much time.
const sight = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) target.row.inSight = isIntersecting;
});

class Row {
  constructor(held) {
    this.mine = held.name === name;
    this.longest = new Map();
    this.timers = [];
    this.inSight = true;
    this.state = element("span", "state");
    this.name = element("th", "", element("span", held.name === name ? "me" : "", held.name), this.state);
    this.name.scope = "row";
    this.name.setAttribute("role", "rowheader");
    this.times = element("td", "timers");
    this.topics = element("td");
    this.queued = element("td", "figure");
    this.running = element("td", "figure");
    this.baton = element("td", "figure");
    const labels = {topics: "topics", queued: "queued", running: "running", baton: "baton"};
    for (const [cell, label] of Object.entries(labels)) this[cell].dataset.label = label;
    this.node = element("tr", "", this.name, this.times, this.topics, this.queued, this.running, this.baton);
    this.node.setAttribute("role", "row");
    for (const cell of this.node.children) if (cell !== this.name) cell.setAttribute("role", "cell");
    this.node.row = this;
    sight.observe(this.node);
  }

  show(held, at) {
    const state = stateOf(held);
    this.setState(state, {
      frozen: "handler frozen", stalled: `stalled ${seconds(held.waiting_ms)}`, waiting: "waits for its stream",
      cut: "stream cut", live: "live",
    }[state]);
    this.showTimers(held, at);
    this.showTopics(held.topics);
    for (const figure of ["queued", "running"]) this.setFigure(figure, held[figure]);
    this.setFigure("baton", held.pending_flow ? 1 : 0);
    this.countDown(performance.now());
  }

  setState(state, text) {
    this.node.dataset.state = state;
    setText(this.state, this.mine ? `you, ${text}` : text);
  }

  setFigure(figure, value) {
    setText(this[figure], value.toLocaleString("en"));
    this[figure].classList.toggle("zero", !value);
  }

  showTimers(held, at) {
    if (!this.timers.length) this.times.replaceChildren();
    while (this.timers.length > held.timers.length) this.timers.pop().node.remove();
    while (this.timers.length < held.timers.length) {
      const timer = {event: element("span"), bar: element("i"), left: element("span", "number")};
      const bar = element("span", "bar", timer.bar);
      bar.setAttribute("aria-hidden", "true");
      timer.node = element("div", "timer", timer.event, bar, timer.left);
      this.times.append(timer.node);
      this.timers.push(timer);
    }
    this.timers.forEach((timer, index) => {
      const {event, remaining_ms} = held.timers[index];
      setText(timer.event, event);
      const kind = event.split(" ")[0];
      timer.longest = Math.max(this.longest.get(kind) ?? 1, remaining_ms);
      this.longest.set(kind, timer.longest);
      timer.due = at + remaining_ms + ahead;
      timer.remaining = remaining_ms;
    });
    if (!this.timers.length) this.times.replaceChildren(element("span", "number zero", "0"));
  }

  showTopics(topics) {
    if (this.shown === topics.join() && this.topics.firstChild) return;
    this.shown = topics.join();
    this.topics.replaceChildren(...(topics.length
      ? topics.map((topic) => element("span", "tag", topic)) : [element("span", "number zero", "0")]));
  }

  countDown(now) {
    for (const {left, bar, due, remaining, longest} of this.timers) {
      const rest = standing ? remaining : Math.max(0, due - now);
      // Show "due" only if the snapshot says so. A timer that reaches 0 between two snapshots has most likely fired.
      setText(left, remaining > 0 ? seconds(rest) : "due");
      left.classList.toggle("due", remaining === 0 && this.node.dataset.state === "stalled");
      if (!calm.matches) bar.style.transform = `scaleX(${Math.min(1, rest / longest)})`;
    }
  }

  // The conversation is gone: set its figures to 0 one after the other, then remove the row.
  fall() {
    this.setState("gone", "gone");
    this.inSight = false;
    const steps = [
      ...this.timers.map(() => () => this.showTimers({timers: this.timers.slice(1).map((timer) => (
        {event: timer.event.textContent, remaining_ms: timer.remaining})), }, 0)),
      () => this.showTopics([]),
      () => { for (const figure of ["queued", "running", "baton"]) this.setFigure(figure, 0); },
    ];
    steps.forEach((step, index) => setTimeout(step, 250 * (index + 1)));
    const end = 250 * (steps.length + 1) + 500;
    setTimeout(() => this.node.classList.add("faded"), end);
    setTimeout(() => { sight.unobserve(this.node); this.node.remove(); }, end + 700);
  }
}

function showConversations({conversations, total, at_ms}) {
  const present = new Set();
  for (const held of conversations) {
    present.add(held.name);
    let row = rows.get(held.name);
    if (!row) {
      row = new Row(held);
      rows.set(held.name, row);
      if (held.name === name) $("conversations").prepend(row.node);
      else $("conversations").append(row.node);
    }
    row.show(held, at_ms);
  }
  for (const [known, row] of rows) {
    if (present.has(known)) continue;
    rows.delete(known);
    if (total > conversations.length) row.node.remove(); // it may only have left the list, which is limited
    else row.fall();
  }
  const more = total - conversations.length;
  $("more").hidden = more <= 0;
  setText($("more"), `and ${more.toLocaleString("en")} more`);
}

let nextLook;
function look(ms) {
  clearTimeout(nextLook);
  nextLook = setTimeout(async () => {
    let pause = 500;
    try {
      if (!document.hidden) {
        const state = await (await fetch("/registry", {signal: AbortSignal.timeout(10_000)})).json();
        const begin = performance.now();
        showRegistry(state);
        // The pause that the server asks for, or longer if the page would spend more than a tenth of its time drawing.
        pause = Math.max(state.again_ms, Math.min(5000, 10 * (performance.now() - begin)));
      }
    } catch {
      $("verdict").dataset.balanced = "unknown";
      setText($("verdict"), "… the server does not answer");
    }
    look(pause);
  }, ms);
}
look(0);
addEventListener("visibilitychange", () => { if (!document.hidden) look(0); });
setInterval(() => {
  if (document.hidden || standing) return;
  const now = performance.now();
  for (const row of rows.values()) if (row.inSight) row.countDown(now);
}, calm.matches ? 500 : 100);
