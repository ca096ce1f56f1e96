// The page: sends a file, follows its progress, shows the result. Everything that is shown goes through textContent or
// attributes, never through markup: file names are hostile. Styles are classes, since the server allows no inline style.
"use strict";

// ---------------------------------------------------------------------------------------------------- elements, words

const $ = (id) => document.getElementById(id);

/** An HTML element. `props` are properties, or attributes where the name has a dash; children are elements or text. */
function html(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** An SVG element with attributes. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A name with control and invisible characters spelled out, such as those that turn its order around. */
function visible(text) {
  return String(text).replace(/[\p{C}\p{Z}]/gu, (char) =>
    char === " " ? char : `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** A file name that fits on two lines; its end, which says what it is, stays. */
function shortened(name) {
  const chars = [...visible(name)];
  return chars.length <= 90 ? chars.join("") : `${chars.slice(0, 60).join("")}…${chars.slice(-24).join("")}`;
}

const WORDS = { fake: "Fake", real: "Real", unsure: "Unsure" };
const probability = (value) => value.toFixed(2);
const percent = (share) => `${Math.round(100 * share)} %`;
const size = (bytes) =>
  bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const count = (number, unit) => `${number.toLocaleString("en")} ${unit}${number === 1 ? "" : "s"}`;

/** 4.2 s, 1:04.2 */
function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  if (tenths < 600) return `${(tenths / 10).toFixed(1)} s`;
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

/** 45 s, 5 minutes: a limit or a time to wait. */
function span(seconds) {
  return seconds < 120 ? count(Math.round(seconds), "second") : count(Math.round(seconds / 60), "minute");
}

/** The verdict on one frame, by the rule for the whole. */
function judged(value, detector) {
  if (value >= detector.high && value > detector.threshold) return "fake";
  return value <= detector.low ? "real" : "unsure";
}

function tag(verdict) {
  return html("span", { className: `tag ${verdict}` }, WORDS[verdict].toLowerCase());
}

// --------------------------------------------------------------------------------------------------------- the views

let about = null; // what the server says about itself, once it has
let turn = new AbortController(); // ends whatever belonged to the view before

function show(view) {
  for (const id of ["start", "work", "trouble", "result"]) $(id).hidden = id !== view;
  $("another").hidden = view !== "result";
}

/** Said by screen readers, and only when it changes. */
function announce(text) {
  if ($("news").textContent !== text) $("news").textContent = text;
}

function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** A message instead of a result. `actions`: label -> what a click does. */
function tell({ title, text, detail = "", actions = { "Choose another file": home }, calm = false }) {
  show("trouble");
  $("trouble").firstElementChild.classList.toggle("banner", !calm);
  $("trouble-title").textContent = title;
  $("trouble-text").textContent = text;
  $("trouble-detail").textContent = visible(detail);
  const buttons = Object.entries(actions).map(([label, onclick]) =>
    html("button", { type: "button", textContent: label, onclick }),
  );
  buttons[0].className = "primary";
  $("trouble-actions").replaceChildren(...buttons);
  document.title = `${title} – raydistal`;
  announce(`${title}. ${text}`);
  $("trouble-title").focus();
}

/** Leaves the present view; the Back button returns to its result, if any. */
function leave() {
  turn.abort();
  turn = new AbortController();
  $("sure").close();
  $("media").replaceChildren(); // else a hidden video would play on
}

function home() {
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  route();
}

function route() {
  leave();
  const id = location.hash.slice(1);
  if (id) return follow(id, turn.signal);
  show("start");
  announce("");
  document.title = "raydistal – video verdicts";
  $("file").value = ""; // so that the same file can be chosen again
}

async function introduce() {
  try {
    const response = await fetch("api/about");
    if (response.ok) about = await response.json();
  } catch {
    // the server is starting or away
  }
  if (!about) return setTimeout(introduce, 3000);
  const { detector, limits } = about;
  $("detector").textContent = visible(
    `Every face in a video, judged by the detector ${detector.name} (${detector.architecture}).`,
  );
  $("synthetic").hidden = !detector.synthetic;
  $("limits").textContent =
    `Up to ${limits.max_upload_mb.toLocaleString("en")} MB and ${span(limits.max_seconds)}. MP4, MOV, WebM, MKV, AVI, JPEG, PNG and others.`;
  $("keep").textContent = `, and it is removed after ${span(60 * limits.keep_minutes)}`;
}

// ---------------------------------------------------------------------------------------------------------- uploading

function tooLarge(file) {
  const limit = about
    ? `At most ${about.limits.max_upload_mb.toLocaleString("en")} MB can be sent`
    : "It is more than this server takes";
  tell({
    title: "This file is too large",
    text: `It is ${size(file.size)}. ${limit}: cut the video to the part that matters, or save it with a smaller picture.`,
    detail: shortened(file.name),
  });
}

/** Checks what is known before a byte is sent. */
async function check(file) {
  if (about && file.size > about.limits.max_upload_mb * 1e6) return (tooLarge(file), false);
  try {
    await file.slice(0, 1).arrayBuffer(); // fails for a folder, and for a file that has gone since it was chosen
    if (file.size) return true;
  } catch {
    // told below
  }
  tell({
    title: "This file cannot be read",
    text: "It is empty, a folder, or not there any more. Choose one video or picture.",
    detail: shortened(file.name),
  });
  return false;
}

/** One try. Resolves to {status, reply, wait_s}; status 0 if the connection broke. */
function send(file, signal, onprogress) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest(); // fetch tells nothing about the progress of an upload
    const done = () => {
      let reply = {};
      try {
        reply = JSON.parse(request.responseText);
      } catch {
        // a proxy's own page, or nothing
      }
      resolve({ status: request.status, reply, wait_s: Number(request.getResponseHeader("Retry-After")) || 5 });
    };
    request.upload.onprogress = (event) => onprogress(event.loaded);
    request.onloadend = done;
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.open("POST", `api/videos?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  });
}

async function upload(file) {
  home();
  const { signal } = turn;
  if (!(await check(file))) return;
  for (;;) {
    const progress = (bytes) =>
      working(file.name, "uploading", bytes / file.size, `${size(bytes)} of ${size(file.size)}`);
    progress(0);
    const { status, reply, wait_s } = await send(file, signal, progress);
    if (signal.aborted) return;
    if (status === 202) {
      location.hash = reply.id; // a reload, or the address sent on, shows the result again
      return;
    }
    if (status === 413) return tooLarge(file);
    if (![0, 429, 502, 503, 504].includes(status)) {
      const text = "Nothing was kept. Try again; if it happens again, tell whoever runs this server.";
      return tell({
        title: "The server could not take this file",
        text,
        detail: `${status} ${reply.detail ?? ""}`,
        actions: { "Try again": () => upload(file), "Choose another file": home },
      });
    }
    for (let left_s = wait_s; left_s > 0 && !signal.aborted; left_s--) {
      const why =
        status === 0 ? "The connection was lost." : "The server is busy: as many videos as it can hold are waiting.";
      announce(`${why} Trying again automatically.`);
      working(file.name, "uploading", null, `${why} Trying again in ${count(left_s, "second")}.`);
      await sleep(1000, signal);
    }
    if (signal.aborted) return;
  }
}

function choose(files) {
  if (files.length > 1)
    tell({
      title: "One file at a time",
      text: `You dropped ${files.length} files. Drop one; for many, use raydistal detect.`,
    });
  else if (files.length) upload(files[0]);
}

// ----------------------------------------------------------------------------------------------------------- progress

const STAGES = { uploading: "Uploading", waiting: "Waiting", faces: "Looking for faces", drawing: "Drawing" };

/** `share` null: it is not known how far it is. */
function working(name, stage, share, note) {
  if ($("work").hidden) {
    show("work");
    $("cancel").focus();
  }
  const title = $("work-title").firstElementChild;
  title.textContent = shortened(name);
  title.title = visible(name);
  $("work-stage").textContent = STAGES[stage];
  if (share === null) $("bar").removeAttribute("value");
  else $("bar").value = share;
  $("work-note").textContent = note;
  const order = Object.keys(STAGES);
  for (const item of $("stages").children) {
    const place = order.indexOf(item.dataset.stage) - order.indexOf(stage);
    item.className = place < 0 ? "done" : place > 0 ? "later" : "";
    if (place) item.removeAttribute("aria-current");
    else item.setAttribute("aria-current", "step");
  }
  document.title = `${share === null ? "" : `${percent(share)} `}${STAGES[stage]} – raydistal`;
}

/** Asks for a video until it is done, also over a lost connection. */
async function follow(id, signal) {
  let name = "Your video";
  while (!signal.aborted) {
    let reply = null;
    try {
      const response = await fetch(`api/videos/${encodeURIComponent(id)}`, { signal, cache: "no-store" });
      if (response.status === 404 || response.status === 410) return expired();
      if (response.ok) reply = await response.json();
    } catch {
      // told below
    }
    if (signal.aborted) return;
    if (!reply) {
      announce("Connection lost. Trying again automatically.");
      working(
        name,
        "waiting",
        null,
        "The connection to the server was lost. Your video is safe there; trying again automatically.",
      );
      await sleep(2000, signal);
      continue;
    }
    name = reply.name;
    if (reply.state === "failed") return failed(reply.error ?? {}, name);
    if (reply.state === "done") return present(id, reply, signal);
    advance(reply);
    await sleep(500, signal);
  }
}

function advance({ name, state, ahead, progress }) {
  const notes = {
    waiting: ahead ? `${count(ahead, "video")} ${ahead === 1 ? "is" : "are"} before yours.` : "Yours is next.",
    faces: `${percent(progress)} done. Each face is found, followed and scored.`,
    drawing: `${percent(progress)} done. The boxes are drawn into the video.`,
  };
  working(name, state, state === "waiting" ? null : progress, notes[state] ?? "");
  announce(state === "waiting" ? `Waiting. ${notes.waiting}` : `${STAGES[state]}, ${25 * Math.floor(4 * progress)} %`); // not every percent
}

function expired() {
  const keep = about ? ` ${span(60 * about.limits.keep_minutes)} after the upload` : " some time after the upload";
  tell({
    title: "There is no result at this address",
    text: `Results are removed${keep}, or earlier if their owner removes them. Send the video again to get a new one.`,
    actions: { "Check a video": home },
  });
}

const FAILURES = {
  decode_error: [
    "This file cannot be read as a video",
    "It is not a video or picture, or it is damaged. If it plays on your machine, save it as MP4 (H.264) and send that.",
  ],
  over_limit: [
    "This video is over the limit",
    "Cut it to the part that matters, or save it with a smaller picture, and send that.",
  ],
  crashed: [
    "This video could not be finished",
    "The process that worked on it crashed. Send it once more; if that happens again, the file is probably damaged: save it as MP4 (H.264) and send that.",
  ],
  timeout: [
    "This video took too long",
    "It is too long, or its picture too large, for this server. Cut it to the part that matters and send that.",
  ],
};

function failed({ status, message }, name) {
  const [title, text] = FAILURES[status] ?? [
    "This video could not be judged",
    "Send it again; if it happens again, tell whoever runs this server.",
  ];
  tell({ title, text, detail: `${shortened(name)}: ${message ?? status ?? "no reason given"}` });
}

// ---------------------------------------------------------------------------------------------------------- the result

function present(id, reply, signal) {
  const result = reply.result;
  if (!["ok", "no_face"].includes(result.status))
    return failed({ status: result.status, message: result.error }, reply.name);
  show("result");
  const files = `api/videos/${encodeURIComponent(id)}/files/`;
  headline(result, reply.name, signal);
  const player = media(result, files);
  const seek = chart(result, player, signal);
  cards(result, files, seek);
  table(result);
  downloads(result, files);
  explain(result);
  removal(id, reply.expires_at, signal);
  $("evidence").hidden = !result.tracks.length;
  $("synthetic").hidden = !result.detector.synthetic;
}

// Fake is a triangle, real a circle, unsure a question mark in a dashed square; nothing found an empty circle.
const SIGNS = {
  fake: ["M36 8 66 62H6Z", "M36 27v16M36 53v.1"],
  real: ["M36 6a30 30 0 1 1-.1 0Z", "M23 37l9 9 17-20"],
  unsure: ["M8 8h56v56H8Z", "M27 29c0-12 18-12 18-1 0 8-9 7-9 15M36 53v.1"],
  none: ["M36 6a30 30 0 1 1-.1 0Z", "M24 36h24"],
};

function headline(result, name, signal) {
  const verdict = result.verdict ?? "none";
  const word = WORDS[verdict] ?? "No face found";
  const [body, mark] = SIGNS[verdict];
  $("verdict").className = `panel verdict ${verdict}`;
  $("sign").replaceChildren(
    svg(
      "svg",
      { viewBox: "0 0 72 72" },
      svg("path", { class: "body", d: body }),
      svg("path", { class: "mark", d: mark }),
    ),
  );
  $("verdict-word").textContent = word;
  const help = " Without a face there is nothing to judge. Faces must be seen from the front, and not be too small.";
  $("reason").textContent = visible(result.reason ?? "") + (verdict === "none" ? help : "");
  const { width_px, height_px, duration_s, is_picture } = result.video;
  const frame = `${width_px ?? "?"} × ${height_px ?? "?"}${is_picture || !duration_s ? "" : `, ${clock(duration_s)}`}`;
  $("about-video").replaceChildren(
    html("bdi", { title: visible(name) }, shortened(name)),
    ` · ${frame} · ${count(result.tracks.length, "face")}`,
  );
  document.title = `${word}: ${shortened(name)} – raydistal`;
  announce(`${word}. ${$("reason").textContent}`);
  $("verdict-word").focus();
  $("scale").hidden = result.probability === null;
  if (result.probability !== null) redrawn($("scale"), signal, (width) => scale(result, width));
}

/** Fills `place` with draw(its width), again whenever that changes: text in a drawing keeps its size. */
function redrawn(place, signal, draw) {
  let drawn = 0;
  const observer = new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    place.replaceChildren(draw(width));
  });
  observer.observe(place);
  signal.addEventListener("abort", () => observer.disconnect(), { once: true });
}

function bands({ low, high }) {
  const [from, to] = [Math.max(0, low), Math.min(1, high)];
  return [
    ["real", 0, from],
    ["unsure", from, to],
    ["fake", to, 1],
  ].filter(([, start, end]) => end > start);
}

const MARKS = { real: "● real", unsure: "? unsure", fake: "▲ fake" };

function hatching(id) {
  const pattern = svg(
    "pattern",
    { id, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("path", { class: "hatch", d: "M0 0V7" }),
  );
  return svg("defs", {}, pattern);
}

/** The probability on a line from 0 to 1, with the threshold and the band around it. */
function scale({ probability: value, detector, tracks }, width) {
  const x = (share) => 8 + share * (width - 16);
  const faces = tracks.length > 1 ? tracks.filter((track) => track.is_judged) : []; // one face is the video
  const { low, high, threshold } = detector;
  const words = [
    `Probability of fake ${probability(value)}, on a scale from 0 to 1.`,
    `The threshold is ${probability(threshold)}; from ${probability(low)} to ${probability(high)} it is unsure.`,
    ...faces.map((track) => `Face ${track.track}: ${probability(track.probability)}.`),
  ].join(" ");
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} 90`, width, height: 90, role: "img", "aria-label": words },
    hatching("scale-hatch"),
  );
  for (const [verdict, from, to] of bands(detector)) {
    const area = { x: x(from), y: 32, width: x(to) - x(from), height: 18 };
    drawing.append(svg("rect", { class: `zone ${verdict}`, ...area }));
    if (verdict === "unsure") drawing.append(svg("rect", { fill: "url(#scale-hatch)", ...area }));
    if (area.width > 54)
      drawing.append(
        svg(
          "text",
          { class: `zone-label ${verdict}`, x: area.x + area.width / 2, y: 67, "text-anchor": "middle" },
          MARKS[verdict],
        ),
      );
  }
  const at = x(value);
  const anchor = value < 0.25 ? "start" : value > 0.75 ? "end" : "middle";
  const limit = x(detector.threshold);
  drawing.append(
    svg("path", { class: "threshold", d: `M${limit} 29V53` }),
    svg("path", { class: "pointer", d: `M${at} 33l-7 -11h14Z M${at - 1} 32h2V50h-2Z` }),
    svg(
      "text",
      { class: "strong", x: at + (anchor === "start" ? -8 : anchor === "end" ? 8 : 0), y: 15, "text-anchor": anchor },
      `${faces.length ? "whole video" : "probability of fake"} ${probability(value)}`,
    ),
    svg("text", { x: limit, y: 85, "text-anchor": "middle" }, `threshold ${probability(detector.threshold)}`),
    svg("text", { x: 8, y: 85 }, "0"),
    svg("text", { x: width - 8, y: 85, "text-anchor": "end" }, "1"),
    ...faces.map(({ track, probability: share }) =>
      svg("g", { class: looks(track) }, svg("path", { class: "dot counts", d: marker(track, x(share), 41, 5) })),
    ),
  );
  return drawing;
}

/** The video with its boxes; null if there is none to play. */
function media(result, files) {
  $("media").replaceChildren();
  $("media").hidden = !result.annotated && !result.error;
  if (!result.annotated) {
    if (result.error) $("media").append(html("p", {}, visible(result.error)));
    return null;
  }
  const address = files + encodeURIComponent(result.annotated);
  if (result.video.is_picture) {
    $("media").append(html("img", { src: address, alt: "The picture with a box around each face" }));
    return null;
  }
  const player = html("video", {
    src: address,
    controls: true,
    preload: "auto",
    playsInline: true,
    "aria-label": "The video with a box around each face",
  });
  player.onerror = () =>
    $("media").replaceChildren(
      html("p", {}, "This browser cannot play the annotated video. It can be downloaded below."),
    );
  $("media").append(player);
  return player;
}

// ---------------------------------------------------------------------------------------------------------- the faces

const SHAPES = [
  (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 1 0 .01Z`,
  (x, y, r) => `M${x} ${y - r * 1.2}l${r * 1.15} ${r * 2.1}h${-r * 2.3}Z`,
  (x, y, r) => `M${x - r * 0.9} ${y - r * 0.9}h${r * 1.8}v${r * 1.8}h${-r * 1.8}Z`,
];

// Lines are told apart by colour, dash and marker; 5, 4 and 3 share no factor, so 60 faces differ.
const looks = (number) => `face-${(number - 1) % 5} dash-${(number - 1) % 4}`;
const marker = (number, x, y, r) => SHAPES[(number - 1) % 3](x, y, r);

function swatch(number) {
  return svg(
    "svg",
    { class: `swatch ${looks(number)}`, viewBox: "0 0 30 12", "aria-hidden": "true" },
    svg("path", { class: "line", d: "M0 6H30" }),
    svg("path", { class: "dot counts", d: marker(number, 15, 6, 4) }),
  );
}

function cards(result, files, seek) {
  const timed = !result.video.is_picture;
  const items = result.tracks.map((track) => {
    const pictures = html("div", { className: "pictures" });
    pictures.append(html("img", { src: files + encodeURIComponent(track.thumbnail), alt: `Face ${track.track}` }));
    if (track.heatmap)
      pictures.append(
        html("img", { src: files + encodeURIComponent(track.heatmap), alt: `Heatmap of face ${track.track}` }),
      );
    else pictures.classList.add("alone");
    const title = [...(timed ? [swatch(track.track)] : []), `Face ${track.track}`];
    if (timed)
      title.splice(
        0,
        2,
        html(
          "button",
          {
            type: "button",
            onclick: () => seek(track.first_s, true),
            "aria-label": `Face ${track.track}: go to where it first appears, ${clock(track.first_s)}`,
          },
          ...title,
        ),
      );
    const when = timed
      ? ` · ${clock(track.first_s)} to ${clock(track.last_s)} · ${count(track.num_frames, "frame")}`
      : "";
    const brief = track.is_judged ? "" : " · seen too briefly to be judged";
    const heading = html("h4", {}, ...title);
    const score = html("span", { className: "score", title: "probability of fake" }, probability(track.probability));
    return html(
      "li",
      { className: "panel face" },
      pictures,
      score,
      heading,
      html("p", { className: "note" }, tag(track.verdict), when, brief),
    );
  });
  $("faces").replaceChildren(...items);
  $("people-title").textContent = count(items.length, "face");
  $("heat-help").hidden = !result.tracks.some((track) => track.heatmap);
  $("evidence").classList.toggle("wide", items.length > 3);
}

// -------------------------------------------------------------------------------------------------------- the timeline

const HEIGHT = 210;
const PLOT = { left: 42, right: 76, top: 10, bottom: 26 };
const isNarrow = (width) => width < 480;

/** Draws the scores over time, ties them to the video, and returns seek(seconds, scrolls). */
function chart(result, player, signal) {
  const { timeline, detector } = result;
  const times = [...new Set(timeline.map((one) => one.pts_s))].sort((a, b) => a - b);
  $("chart").hidden = times.length < 2;
  if (times.length < 2) return () => {};
  const steps = times
    .slice(1)
    .map((time, place) => time - times[place])
    .sort((a, b) => a - b);
  const step_s = steps[Math.floor(steps.length / 2)];
  const end_s = Math.max(result.video.duration_s ?? 0, times.at(-1));
  const slider = $("slider");
  const playhead = svg(
    "g",
    {},
    svg("path", { class: "playhead", d: `M0 ${PLOT.top - 6}V${HEIGHT - PLOT.bottom}` }),
    svg("path", { class: "knob", d: `M-6 ${PLOT.top - 8}h12l-6 9Z` }),
  );
  let now_s = 0;
  let x = () => 0;
  let said = 0;

  // What is seen at a time: of each face the nearest frame, unless it is too far away to be the same moment.
  const ofFaces = result.tracks.map(({ track }) => timeline.filter((one) => one.track === track));
  const seen = (at_s) =>
    ofFaces.flatMap((mine) => {
      const away = (one) => Math.abs(one.pts_s - at_s);
      const nearest = mine.reduce((best, one) => (away(one) < away(best) ? one : best), mine[0]);
      return nearest && Math.abs(nearest.pts_s - at_s) <= 0.75 * step_s ? [nearest] : [];
    });
  const read = (at_s) => {
    const parts = seen(at_s).map((one) =>
      html(
        "span",
        {},
        swatch(one.track),
        `face ${one.track} ${probability(one.probability)} `,
        tag(judged(one.probability, detector)),
      ),
    );
    $("readout").replaceChildren(html("span", {}, html("b", {}, clock(at_s))), ...(parts.length ? parts : ["no face"]));
  };
  const place = () => {
    playhead.setAttribute("transform", `translate(${x(now_s)} 0)`);
    read(now_s);
    if (player && !player.paused && Math.abs(now_s - said) < 1) return; // a screen reader would read out every change
    said = now_s;
    const words = seen(now_s).map(
      (one) => `face ${one.track} ${probability(one.probability)} ${judged(one.probability, detector)}`,
    );
    slider.setAttribute("aria-valuenow", now_s.toFixed(2));
    slider.setAttribute("aria-valuetext", `${clock(now_s)}: ${words.join(", ") || "no face"}`);
  };
  const seek = (to_s, scrolls = false) => {
    now_s = Math.min(Math.max(0, to_s), end_s);
    if (player) player.currentTime = now_s + 0.001; // rounded down, it would show the frame before
    place();
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (scrolls) $("media").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  };

  slider.setAttribute("aria-valuemax", end_s.toFixed(2));
  redrawn(slider, signal, (width) => {
    const right = isNarrow(width) ? 24 : PLOT.right;
    x = (time_s) => PLOT.left + (time_s / end_s) * (width - PLOT.left - right);
    const drawing = plot(result, width, x, end_s, Math.max(1, 2.5 * step_s));
    drawing.append(playhead);
    place();
    return drawing;
  });
  steer(slider, seek, read, {
    times,
    end_s,
    now: () => now_s,
    at: (pixel) => (end_s * (pixel - x(0))) / (x(end_s) - x(0)),
    signal,
  });
  if (player) {
    const tick = () => {
      now_s = Math.min(player.currentTime, end_s);
      place();
      if (!player.paused && !player.ended && !signal.aborted) requestAnimationFrame(tick);
    };
    player.onplay = tick;
    player.ontimeupdate = () => player.paused && !player.seeking && tick();
  }
  return seek;
}

/** Mouse, finger and keys. */
function steer(slider, seek, read, { times, end_s, now, at, signal }) {
  const time = (event) => Math.min(Math.max(0, at(event.clientX - slider.getBoundingClientRect().left)), end_s);
  const on = (name, react) => slider.addEventListener(name, react, { signal });
  on("pointerdown", (event) => {
    slider.setPointerCapture(event.pointerId);
    seek(time(event));
  });
  on("pointermove", (event) => (event.buttons ? seek(time(event)) : read(time(event))));
  on("pointerleave", () => read(now()));
  on("keydown", (event) => {
    const after = times.find((one) => one > now() + 0.002) ?? end_s;
    const before = times.findLast((one) => one < now() - 0.002) ?? 0;
    const targets = {
      ArrowRight: after,
      ArrowUp: after,
      ArrowLeft: before,
      ArrowDown: before,
      PageUp: now() + 5,
      PageDown: now() - 5,
      Home: 0,
      End: end_s,
    };
    if (!(event.key in targets) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    seek(targets[event.key]);
  });
}

/** The drawing, without the playhead. A face that is away for longer than `gap_s` leaves a gap in its line. */
function plot({ tracks, timeline, detector }, width, x, end_s, gap_s) {
  const bottom = HEIGHT - PLOT.bottom;
  const y = (value) => bottom - value * (bottom - PLOT.top);
  const [left, right] = [x(0), x(end_s)];
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" },
    hatching("chart-hatch"),
  );
  for (const [verdict, from, to] of bands(detector)) {
    const area = { x: left, y: y(to), width: right - left, height: y(from) - y(to) };
    drawing.append(svg("rect", { class: `zone ${verdict}`, ...area }));
    if (verdict === "unsure") drawing.append(svg("rect", { fill: "url(#chart-hatch)", ...area }));
    if (area.height > 11)
      drawing.append(
        svg(
          "text",
          { class: `zone-label ${verdict}`, x: right + 8, y: area.y + area.height / 2 + 4 },
          isNarrow(width) ? MARKS[verdict][0] : MARKS[verdict],
        ),
      );
  }
  for (const value of [0, 0.5, 1, detector.threshold]) {
    const isThreshold = value === detector.threshold;
    if (!isThreshold && Math.abs(value - detector.threshold) < 0.1) continue;
    drawing.append(svg("path", { class: isThreshold ? "threshold" : "grid", d: `M${left} ${y(value)}H${right}` }));
    drawing.append(
      svg(
        "text",
        { class: isThreshold ? "strong" : "", x: left - 9, y: y(value) + 4, "text-anchor": "end" },
        isThreshold ? probability(value) : String(value),
      ),
    );
  }
  const tick_s =
    [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800].find((one) => x(one) - left >= 64) ?? 3600;
  for (let place = 0; place * tick_s <= end_s + 1e-6; place++) {
    const text = tick_s < 1 ? clock(place * tick_s) : clock(place * tick_s).replace(/\.0( s)?$/, "$1");
    drawing.append(
      svg("path", { class: "grid", d: `M${x(place * tick_s)} ${bottom}v5` }),
      svg("text", { x: x(place * tick_s), y: bottom + 19, "text-anchor": "middle" }, text),
    );
  }
  for (const { track } of tracks)
    drawing.append(
      curve(
        track,
        timeline.filter((one) => one.track === track),
        x,
        y,
        gap_s,
      ),
    );
  return drawing;
}

function curve(track, points, x, y, gap_s) {
  let path = "";
  points.forEach((one, place) => {
    const joins = place && one.pts_s - points[place - 1].pts_s <= gap_s;
    path += `${joins ? "L" : "M"}${x(one.pts_s).toFixed(1)} ${y(one.probability).toFixed(1)}`;
  });
  const group = svg("g", { class: looks(track) }, svg("path", { class: "line", d: path }));
  const isSparse = points.length < 2 || (x(points.at(-1).pts_s) - x(points[0].pts_s)) / points.length > 9;
  for (const one of points) {
    if (!one.is_sampled && !isSparse) continue; // markers would hide the line
    group.append(
      svg("path", {
        class: one.is_sampled ? "dot counts" : "dot",
        d: marker(track, x(one.pts_s), y(one.probability), one.is_sampled ? 4.5 : 2.2),
      }),
    );
  }
  return group;
}

/** The same in words, for those who cannot see the drawing or want the numbers. Filled when it is first opened. */
function table({ timeline, detector }) {
  const place = $("values").querySelector(".scroll");
  $("values").open = false;
  place.replaceChildren();
  $("values").ontoggle = () => {
    if (place.firstChild) return;
    const heads = ["time", "face", "probability of fake", "reads as", "counts towards the verdict"].map((text) =>
      html("th", { scope: "col" }, text),
    );
    const rows = timeline.map((one) =>
      html(
        "tr",
        {},
        html("th", { scope: "row" }, `${one.pts_s.toFixed(2)} s`),
        html("td", {}, String(one.track)),
        html("td", { className: "number" }, one.probability.toFixed(3)),
        html("td", {}, tag(judged(one.probability, detector))),
        html("td", {}, one.is_sampled ? "yes" : "no"),
      ),
    );
    place.append(html("table", {}, html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...rows)));
  };
}

// ------------------------------------------------------------------------------------------- downloads, facts, removal

function downloads({ annotated, video }, files) {
  const offers = [
    ["verdict.json", "Verdict (JSON)"],
    ["timeline.csv", "Scores over time (CSV)"],
  ];
  if (annotated) offers.unshift([annotated, video.is_picture ? "Annotated picture (JPEG)" : "Annotated video (MP4)"]);
  $("downloads").replaceChildren(
    ...offers.map(([file, label]) =>
      html(
        "a",
        { className: "download", href: `${files}${encodeURIComponent(file)}?download=1`, download: file },
        `↓ ${label}`,
      ),
    ),
  );
}

function explain({ detector, protocol, timeline, raydistal }) {
  const sampled = new Set(timeline.filter((one) => one.is_sampled).map((one) => one.frame_index)).size;
  const mean = sampled ? ` The video’s is the mean over the largest face of ${count(sampled, "frame")}.` : "";
  $("meaning").textContent = `Its scores go from 0, surely real, to 1, surely fake.${mean}`;
  const settings = Object.entries(protocol.faces ?? {}).map(([name, value]) => `${name} ${value}`);
  const facts = {
    Detector: `${detector.name} (${detector.model_id})`,
    Network: `${detector.architecture}, ${detector.technique}`,
    "Runs on": `${detector.runtime}, ${detector.precision}`,
    "Learnt from": detector.trained_on.join(", ") + (detector.synthetic ? "; drawn by a program, not filmed" : ""),
    Threshold: `${probability(detector.threshold)}; unsure from ${probability(detector.low)} to ${probability(detector.high)}`,
    "Frames that count": `${protocol.sample}, ${protocol.aggregate} of the largest face`,
    "Further frames": protocol.timeline,
    Faces: settings.join(", "),
    raydistal,
  };
  $("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, visible(value))]),
  );
  $("version").textContent = raydistal;
}

function removal(id, expiresAt, signal) {
  const end = new Date(typeof expiresAt === "number" ? 1000 * expiresAt : expiresAt);
  const time = end.toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false });
  (async () => {
    while (!signal.aborted && Date.now() < end) {
      $("removal").textContent =
        `The video and this result are removed at ${time}, in ${span((end - Date.now()) / 1000)}. Whoever has this page’s address can see them until then.`;
      await sleep(Math.min(20000, Math.max(1000, end - Date.now())), signal);
    }
    if (!signal.aborted) follow(id, signal); // gone by now, unless the clocks differ
  })();
  $("remove").onclick = () => $("sure").showModal();
  $("remove-it").onclick = () =>
    remove(id, {
      title: "Removed",
      text: "The video and its result are deleted.",
      actions: { "Check another video": home },
      calm: true,
    });
}

/** Deletes a video from the server, then goes home or tells `message`. */
async function remove(id, message) {
  let isGone = false;
  try {
    const response = await fetch(`api/videos/${encodeURIComponent(id)}`, { method: "DELETE" });
    isGone = response.ok || response.status === 404;
  } catch {
    // told below
  }
  home();
  if (!isGone)
    tell({
      title: "It could not be removed",
      text: "The server did not answer. Try again, or wait: it is removed when its time is over.",
      actions: { "Try again": () => remove(id, message), "Check another video": home },
    });
  else if (message) tell(message);
}

// --------------------------------------------------------------------------------------------------------------- start

$("file").addEventListener("change", (event) => choose(event.target.files));
$("another").addEventListener("click", home);
$("keep-it").addEventListener("click", () => $("sure").close());
$("cancel").addEventListener("click", () => {
  const id = location.hash.slice(1);
  turn.abort();
  if (id) remove(id);
  else home();
});
// A file may be dropped anywhere: beside the zone, the browser would leave the page and open it.
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    const isOver = name !== "drop" && !(name === "dragleave" && !event.relatedTarget);
    document.body.classList.toggle("dragged", isOver);
    if (name === "drop" && $("work").hidden && !$("sure").open) choose(event.dataTransfer.files);
  });
}
addEventListener("hashchange", route);
introduce();
route();
