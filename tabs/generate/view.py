"""HTML of the prompts with the Generate button, and of the buttons below an image."""

from dataclasses import dataclass
from pathlib import Path

from tabs.markup import esc

# -- fields

# While Generate is scrolled away, a second one stays at the lower edge of the settings, with what is being generated.
IN_REACH = """
{
  const first = document.querySelector('#gen-prompts'), again = document.createElement('div'), says = document.createElement('div');
  const press = Object.assign(document.createElement('button'), {type: 'button', className: 'btn primary', textContent: 'Generate'});
  Object.assign(again, {id: 'gen-again', className: 'off', ariaHidden: 'true'});  // keys have Ctrl+Enter, readers the first one
  Object.assign(press, {title: 'Ctrl+Enter', tabIndex: -1, onclick: () => first.querySelector('#gen-draw')?.click()});
  says.addEventListener('click', ({target}) => {
    if (target.closest('[data-act=cancel]')) element.querySelector('.gen-now [data-act=cancel]')?.click();
  });
  again.append(press, says);
  document.querySelector('#gen-form').append(again);
  const tell = () => {
    const now = element.querySelector('.gen-now');
    if (again.classList.contains('off')) return;
    says.innerHTML = now ? now.innerHTML : '';
    for (const button of says.querySelectorAll('button')) button.tabIndex = -1;
  };
  const look = new IntersectionObserver(([draw]) => { again.classList.toggle('off', draw.isIntersecting); tell(); });
  let watched = null;
  const follow = () => {
    const draw = first.querySelector('#gen-draw');
    if (!draw || draw === watched) return;
    look.disconnect();
    look.observe(watched = draw);
  };
  new MutationObserver(follow).observe(first, {childList: true, subtree: true});
  new MutationObserver(tell).observe(element, {childList: true, subtree: true, characterData: true, attributes: true});
  follow();
}
"""


def prompts(fields: str, start_fields: str, below: str) -> str:
    """Return the HTML of the prompts and the Generate button.

    fields: HTML of the prompts; start_fields: HTML next to the button; below: HTML below the prompts
    """
    draw = (
        '<button type="button" class="btn primary" id="gen-draw" data-act="draw" title="Ctrl+Enter">Generate</button>'
    )
    side = f'<div class="gen-start">{draw}<div class="concept-fields">{start_fields}</div></div>'
    return f'<div class="block-part gen-top"><div class="gen-texts">{fields}</div>{below}{side}</div>'


# -- the newest image


@dataclass(frozen=True)
class NewestImage:
    """The newest image of the gallery.

    name      in the gallery
    settings  whether the image contains settings to load
    stars     rating, 0 to 5
    """

    name: str
    path: Path
    prompt: str
    seed: int | None
    settings: bool
    stars: int = 0


def image_buttons(image: NewestImage) -> str:
    """Return the HTML of the buttons that use an image or copy its prompt or seed."""
    reuse = (("use", "Use settings", ""), ("vary", "Vary", "The same image with small changes"))
    acts = (
        *(reuse if image.settings else ()),
        ("upscale", "Upscale", ""),
        ("begin", "Image to image", "Begin the next images with this one"),
        ("inpaint", "Inpaint", "Paint what is generated again"),
    )
    buttons = "".join(_image_button("use", act, label, image.name, title) for act, label, title in acts)
    copies = (("Copy prompt", image.prompt), ("Copy seed", "" if image.seed is None else str(image.seed)))
    buttons += "".join(
        f'<button type="button" class="btn quiet" data-copy="{esc(text)}">{label}</button>'
        for label, text in copies
        if text
    )
    return buttons


def star_and_trash(image: NewestImage) -> str:
    """Return the HTML of an image's favorite and trash buttons."""
    star, next_stars = ("\u2605" * image.stars, "0") if image.stars else ("\u2606", "1")
    favorite = _image_button("star", next_stars, star, image.name, "Favorite", pressed=bool(image.stars))
    return favorite + _image_button("trash", "", "Move to trash", image.name)


def _image_button(kind: str, arg: str, label: str, name: str, title: str = "", pressed: bool | None = None) -> str:
    """Return the HTML of an image's button, handled by assets/gallery.js.

    kind     suffix of the data attribute: "use", "star" or "trash"
    name     of the image in the gallery
    pressed  state of a toggle button, None for other buttons
    """
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}" aria-label="{title}"'
    return (
        f'<button type="button" class="btn quiet" data-image-{kind}="{arg}" data-name="{esc(name)}" title="{title}"{state}>'
        f"{label}</button>"
    )
