"""Settings of prompts from files, styles and scripts, and of their repetitions."""

from core.settings.base import Settings, kohya_setting, setting


class PromptSettings(Settings):
    """Prompts from files, styles and scripts, and how often each is used."""

    from_file: str | None = kohya_setting(
        None,
        title="Prompts from a file",
        widget="file",
        names="path",
        hint="none",
        help="A .txt with one prompt per line, or a .toml or .json in sd-scripts' format, used instead of the prompt. Options after a prompt hold for that line: --n negative prompt --w width --h height --d seed --s steps --l guidance.",
    )
    styles: list[str] = setting(
        [],
        help="Names of saved styles, added to the prompt and the negative prompt at the start. A style with {prompt} wraps the prompt, another is appended. Styles are saved on the Generate tab.",
    )
    from_module: str | None = kohya_setting(
        None,
        title="Prompts from a module",
        hint="none",
        help="A Python module whose prompts(job) returns one prompt per line, with options; sd-scripts' get_prompter works too. The owner of the machine must allow it: --allow-module, or a line in allowed_modules.txt.",
    )
    prompter_module_args: str | None = kohya_setting(
        None, title="Module arguments", hint="none", help="Text that is passed to the module."
    )
    dynamic_prompts: bool = setting(
        True,
        help="Reads {red|blue}, __name__ and options such as --d 5 in prompts. Off reads them as text; with sd-scripts compatibility the seed is then the image's own.",
    )
    n_iter: int = kohya_setting(
        1,
        within=(1, 1000),
        title="Repetitions",
        unit="times",
        help="How many times all prompts are generated. With random seeds, each repetition gives other images.",
    )
    shuffle_prompts: bool = kohya_setting(False, help="Shuffles the prompts of a file for each repetition.")
    iter_same_seed: bool = kohya_setting(
        False, title="One seed per repetition", help="All prompts without a seed of their own share one seed."
    )
