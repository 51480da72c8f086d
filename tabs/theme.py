"""The page's Gradio theme: one accent color and system fonts, so that no font is loaded from another server."""

import gradio as gr

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

# A petrol accent. On white, 600 has a contrast of 5.9; in the dark, 300 on 900-gray has 9.6 (WCAG AA asks for 4.5).
ACCENT = gr.themes.Color(
    name="petrol",
    c50="#eef8fa",
    c100="#d5edf2",
    c200="#aedce6",
    c300="#7cc4d4",
    c400="#43a4bb",
    c500="#1e88a2",
    c600="#0e6f88",
    c700="#0d5a6f",
    c800="#104b5c",
    c900="#123f4d",
    c950="#062833",
)
GRAY = gr.themes.Color(
    name="ink",
    c50="#f7f8f9",
    c100="#eff1f3",
    c200="#e0e4e8",
    c300="#c8ced5",
    c400="#98a2ad",
    c500="#6b7682",
    c600="#525c67",
    c700="#3c444d",
    c800="#272d34",
    c900="#1a1f24",
    c950="#121619",
)

# {variable of the theme: its values in light and in dark}. `*name` refers to another variable.
COLORS = {
    "body_background_fill": ("*neutral_50", "*neutral_950"),
    "body_text_color": ("*neutral_900", "*neutral_100"),
    "body_text_color_subdued": ("*neutral_600", "#a9b3bd"),
    "background_fill_primary": ("*neutral_50", "*neutral_950"),
    "background_fill_secondary": ("*neutral_50", "*neutral_800"),
    "border_color_primary": ("*neutral_200", "#333b44"),
    "block_background_fill": ("white", "*neutral_900"),
    "block_border_color": ("*neutral_200", "#333b44"),
    "block_label_background_fill": ("transparent", "transparent"),
    "block_label_text_color": ("*body_text_color_subdued", "*body_text_color_subdued"),
    "block_title_background_fill": ("transparent", "transparent"),
    "block_title_text_color": ("*body_text_color", "*body_text_color"),
    "input_background_fill": ("white", "*neutral_950"),
    "input_border_color": ("#8b96a1", "#66727e"),  # 3:1 against white: the edge of a control must be seen
    "input_border_color_focus": ("*primary_600", "*primary_300"),
    "input_shadow_focus": ("0 0 0 3px *primary_100", "0 0 0 3px *primary_900"),
    "checkbox_border_color": ("#8b96a1", "#66727e"),
    "checkbox_background_color_selected": ("*primary_600", "*primary_500"),
    "checkbox_border_color_selected": ("*primary_600", "*primary_500"),
    "checkbox_label_background_fill": ("white", "*neutral_950"),
    "checkbox_label_border_color": ("*neutral_300", "#4a545f"),
    "checkbox_label_background_fill_selected": ("*primary_50", "*primary_950"),
    "checkbox_label_border_color_selected": ("*primary_600", "*primary_400"),
    "checkbox_label_text_color_selected": ("*body_text_color", "*body_text_color"),
    "button_primary_background_fill": ("*primary_600", "*primary_600"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_500"),
    "button_secondary_background_fill": ("white", "*neutral_800"),
    "button_secondary_background_fill_hover": ("*neutral_100", "*neutral_700"),
    "button_secondary_border_color": ("*neutral_300", "#4a545f"),
    "button_secondary_text_color": ("*body_text_color", "*body_text_color"),
    "button_primary_border_color": ("*primary_600", "*primary_600"),
    "slider_color": ("*primary_600", "*primary_400"),
    "link_text_color": ("*primary_700", "*primary_300"),
    "link_text_color_hover": ("*primary_800", "*primary_200"),
}


def theme() -> gr.themes.Base:
    """Return the page's theme."""
    base = gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=GRAY,
        font=list(FONTS),
        font_mono=list(MONO),
    )
    return base.set(
        block_border_width="0px",
        block_padding="10px 12px",
        block_radius="*radius_lg",
        block_label_border_width="0px",
        block_title_text_weight="600",
        block_title_text_size="14px",
        block_title_padding="0px",
        block_info_text_size="13px",
        input_border_width="1px",
        input_padding="7px 10px",
        input_radius="*radius_md",
        input_text_size="14px",
        checkbox_label_padding="6px 12px",
        checkbox_label_border_width="1px",
        button_large_padding="10px 16px",
        button_large_text_size="15px",
        button_small_padding="5px 10px",
        button_small_text_size="13px",
        button_small_text_weight="500",
        button_medium_text_weight="500",
        button_medium_text_size="14px",
        button_medium_padding="7px 14px",
        button_border_width="1px",
        layout_gap="12px",
        panel_border_width="0px",
        **{name: light for name, (light, _) in COLORS.items()},
        **{f"{name}_dark": dark for name, (_, dark) in COLORS.items()},
    )
