const at = (id) => document.getElementById(id);
let draw = 0;
let asked = 0;

function list(id, lines) {
  const section = at(id);
  section.hidden = lines.length === 0;
  section.querySelector("ul").replaceChildren(...lines.map((line) => {
    const entry = document.createElement("li");
    entry.textContent = line;
    return entry;
  }));
}

function say(error) {
  at("error").textContent = error;
  at("error").hidden = !error;
}

async function show() {
  const mine = ++asked;
  let shown;
  try {
    const answer = await fetch(`/state?pick=${at("pick").value}&draw=${draw}`);
    if (!answer.ok) throw new Error(await answer.text());
    shown = await answer.json();
  } catch (error) {
    if (mine === asked) say(`The preview does not answer: ${error.message}`);
    return;
  }
  if (mine !== asked) return;
  say(shown.error);
  list("problems", shown.problems);
  list("missing", shown.missing);
  at("hosts").textContent = shown.hosts.join(", ") || "nowhere";
  at("state").textContent = shown.frame ? `${shown.items} items, ${new Date().toLocaleTimeString()}` : "not rendered";
  at("again").disabled = at("pick").value !== "random";
  if (shown.frame) at("frame").src = shown.frame;
  at("frame").classList.toggle("old", !shown.frame);
  document.body.dataset.asked = mine;
}

at("pick").addEventListener("change", show);
at("again").addEventListener("click", () => { draw += 1; show(); });
const changes = new EventSource("/changes");
let opened = false;
changes.addEventListener("message", show);
// What was saved while the connection was away would be missed.
changes.addEventListener("open", () => { if (opened) show(); opened = true; });
show();
