// Shows the notebook's widgets without a kernel. Built into assets/vendor/widgets.js by esbuild.
// The stock embed.js compiles JSON schemas at run time and so needs 'unsafe-eval'; HTMLManager alone does not.
import { HTMLManager } from "@jupyter-widgets/html-manager/lib/htmlmanager";

const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';

// A slider's handle has no name, and says its position as a bare number; the label and the readout beside it know better.
function nameSliders(place) {
  for (const handle of place.querySelectorAll('[role="slider"]')) {
    const row = handle.closest(".widget-slider");
    handle.setAttribute("aria-label", row.querySelector(".widget-label").textContent);
    handle.setAttribute("aria-valuetext", row.querySelector(".widget-readout").textContent);
  }
}

async function show() {
  const manager = new HTMLManager();
  const models = new Map();
  for (const tag of document.querySelectorAll(STATE)) {
    for (const model of await manager.set_state(JSON.parse(tag.textContent))) models.set(model.model_id, model);
  }
  for (const tag of document.querySelectorAll(VIEW)) {
    const id = JSON.parse(tag.textContent).model_id;
    const model = models.get(id);
    if (!model) continue; // a run that was cut short may have the view but not the state: its default figure stays
    const place = document.createElement("div");
    place.className = "widget-subarea";
    tag.parentElement.insertBefore(place, tag);
    new MutationObserver(() => nameSliders(place)).observe(place, { childList: true, characterData: true, subtree: true });
    await manager.display_view(await manager.create_view(model), place);
    // The page also holds the default figure, for print and for readers without scripts; the live widget replaces it.
    document.querySelectorAll(`[data-widget="${CSS.escape(id)}"]`).forEach((n) => n.classList.add("sb-replaced"));
  }
}

// The script stands in the head, so the page is not there yet.
window.addEventListener("load", () => {
  if (document.querySelector(VIEW)) show().catch((error) => console.error("widgets:", error));
});
