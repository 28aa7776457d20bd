// what the browser does by itself; words are those of the page's language

const plain = text => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
const enter = (field, text) => {
  field.value = text;
  field.dispatchEvent(new Event("input", {bubbles: true}));
};

// copies also where there is no clipboard for pages: on http, from another machine
const copy = async text => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = Object.assign(document.createElement("textarea"), {value: text});
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
};

// downloads a conversation: a list of messages as it is, or as Markdown
const save = (messages, kind) => {
  const heading = {user: polylm.User, assistant: polylm.Assistant};
  const text = kind === "json" ? JSON.stringify(messages, null, 1) + "\n"
    : messages.map(message => `**${heading[message.role]}**\n\n${message.content}\n`).join("\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/plain;charset=utf-8"}));
  link.download = `polylm-chat.${kind}`;
  link.click();
  URL.revokeObjectURL(link.href);
};

// swaps the languages, and goes on with the best translation
const swap = (text, source, target, found) => {
  const shown = document.createElement("div");
  shown.innerHTML = found;
  const best = shown.querySelector("td[lang]"), from = shown.querySelector("table")?.dataset.source ?? source;
  return from ? [best?.textContent ?? text, target, from] : [text, source, target];
};

// keeps the translations and the line about them while they belong to what the fields hold
const keepOwn = (...values) => {
  const [found, status] = values.slice(-2), shown = document.createElement("div");
  shown.innerHTML = found;
  const asked = shown.querySelector("[data-asked]")?.dataset.asked;
  return [undefined, JSON.stringify(values.slice(0, -2))].includes(asked) ? [found, status] : ["", ""];
};

// what is typed into a field for a language replaces the language that stands there
let entered = null;
document.addEventListener("focusin", ({target}) => {
  entered = target.matches("#source input, #target input") ? target : null;
  entered?.select();
  // gradio holds messages as HTML, and would let them be edited so
  if (target.matches("#chat .edit-textarea")) enter(target, plain(target.value));
});
document.addEventListener("click", event => {
  const {target} = event;
  if (target === entered) target.select(); // a click has put the cursor somewhere
  entered = null;
  const button = target.closest("button.copy");
  if (button) copy(button.closest("tr").querySelector("td[lang]").textContent);
});
document.addEventListener("click", event => { // gradio would copy messages as HTML
  const buttons = event.target.closest("#chat .message-buttons"), button = event.target.closest("button");
  if (!buttons || button !== buttons.querySelector("button") || document.querySelector("#chat .edit-textarea")) return;
  event.stopPropagation();
  copy(buttons.previousElementSibling.querySelector(".message-content").innerText);
}, true);
document.addEventListener("keydown", event => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !event.target.closest("#source-text")) return;
  event.preventDefault();
  document.querySelector("#translate").click();
});

// the page is in its language, though gradio names the browser's, and texts run in their own directions
const put = (element, name, value) => element[name] === value || (element[name] = value);
const describe = () => {
  put(document.documentElement, "lang", polylm.lang);
  put(document.documentElement, "dir", "ltr");
  for (const each of document.querySelectorAll("#chat :is([data-testid=user], [data-testid=bot]), textarea")) {
    put(each, "dir", "auto");
  }
  for (const each of document.querySelectorAll("#swap")) {
    put(each, "ariaLabel", polylm.swap);
    put(each, "title", polylm.swap);
  }
  for (const each of document.querySelectorAll("#examples button")) {
    put(each, "lang", polylm.languages[each.textContent.trim()] ?? "");
  }
};
describe();
const watched = {subtree: true, childList: true, attributeFilter: ["lang"]};
new MutationObserver(describe).observe(document.documentElement, watched);
