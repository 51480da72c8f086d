"""Prompts of vision-language models as data: caption types, lengths, and optional sentences."""

# Name -> (label, prompt). {length}: "short " or nothing; {words}: " in 50 words or less" or nothing. All but the first are the
# caption types that JoyCaption was trained with, which other models follow as well.
CAPTION_TYPES = {
    "training": (
        "for training",
        "Describe this image as a {length}prompt for an image generator{words}. Begin directly with the main subject, then cover"
        " its appearance, pose and clothing, the setting, the light, the colors and the style. State what is visible with"
        " certainty, without introduction, guesses or comments.",
    ),
    "descriptive": ("descriptive", "Write a {length}detailed description for this image{words}."),
    "casual": ("descriptive, casual", "Write a {length}descriptive caption for this image in a casual tone{words}."),
    "straightforward": (
        "straightforward",
        "Write a {length}straightforward caption for this image{words}. Begin with the main subject and medium. Mention pivotal"
        " elements, such as people, objects and scenery, in confident, definite language. Focus on concrete details like color,"
        " shape, texture and spatial relationships. Show how elements interact. Omit mood and speculative wording. If text is"
        " present, quote it exactly. Note any watermarks, signatures or compression artifacts. Never mention what is absent,"
        " resolution or unobservable details.",
    ),
    "stable-diffusion": (
        "Stable Diffusion prompt",
        "Output a {length}stable diffusion prompt that is indistinguishable from a real stable diffusion prompt{words}.",
    ),
    "midjourney": ("Midjourney prompt", "Write a {length}MidJourney prompt for this image{words}."),
    "danbooru": (
        "Danbooru tags",
        "Generate only a {length}list of comma-separated Danbooru tags (lowercase_underscores){words}. Strict order: artist:,"
        " copyright:, character:, meta:, then general tags. Include counts (1girl), appearance, clothing, accessories, pose,"
        " expression, actions, background. Use precise Danbooru syntax. No extra text.",
    ),
    "e621": (
        "e621 tags",
        "Write a {length}comma-separated list of e621 tags in alphabetical order for this image{words}. Start with the artist,"
        " copyright, character, species, meta and lore tags (if any), prefixed by artist:, copyright:, character:, species:,"
        " meta: and lore:. Then all the general tags.",
    ),
    "rule34": (
        "Rule34 tags",
        "Write a {length}comma-separated list of rule34 tags in alphabetical order for this image{words}. Start with the artist,"
        " copyright, character and meta tags (if any), prefixed by artist:, copyright:, character: and meta:. Then all the"
        " general tags.",
    ),
    "booru": ("booru-like tags", "Write a {length}list of Booru-like tags for this image{words}."),
    "art-critic": (
        "art critic",
        "Analyze this image like an art critic would, with {length}information about its composition, style, symbolism, the use"
        " of color, light and any artistic movement it might belong to{words}.",
    ),
    "product": (
        "product listing",
        "Write a {length}caption for this image as though it were a product listing{words}.",
    ),
    "social": (
        "social media post",
        "Write a {length}caption for this image as if it were being used for a social media post{words}.",
    ),
}
LENGTHS = {
    "any": "any",
    "very-short": "very short",
    "short": "short",
    "medium": "medium-length",
    "long": "long",
    "very-long": "very long",
}
# Name of the setting -> (title, sentence added to the prompt), in JoyCaption's order.
TOGGLES = {
    "only_changeable_traits": (
        "Only changeable traits",
        "Do NOT include information about people/characters that cannot be changed (like ethnicity, gender, etc), but do still"
        " include changeable attributes (like hair style).",
    ),
    "lighting": ("Lighting", "Include information about lighting."),
    "camera_angle": ("Camera angle", "Include information about camera angle."),
    "watermark": ("Watermark", "Include information about whether there is a watermark or not."),
    "jpeg_artifacts": ("JPEG artifacts", "Include information about whether there are JPEG artifacts or not."),
    "camera_details": (
        "Camera details",
        "If it is a photo you MUST include information about what camera was likely used and details such as aperture, shutter"
        " speed, ISO, etc.",
    ),
    "keep_pg": ("Keep it PG", "Do NOT include anything sexual; keep it PG."),
    "no_resolution": ("No resolution", "Do NOT mention the image's resolution."),
    "quality": (
        "Aesthetic quality",
        "You MUST include information about the subjective aesthetic quality of the image from low to very high.",
    ),
    "composition": (
        "Composition",
        "Include information on the image's composition style, such as leading lines, rule of thirds, or symmetry.",
    ),
    "no_text": ("No quoted text", "Do NOT mention any text that is in the image."),
    "depth_of_field": (
        "Depth of field",
        "Specify the depth of field and whether the background is in focus or blurred.",
    ),
    "light_sources": (
        "Light sources",
        "If applicable, mention the likely use of artificial or natural lighting sources.",
    ),
    "no_hedging": ("No hedging", "Do NOT use any ambiguous language."),
    "rating": ("Content rating", "Include whether the image is sfw, suggestive, or nsfw."),
    "only_important": ("Only important elements", "ONLY describe the most important elements of the image."),
}
PERSON = "If there is a person/character in the image you must refer to them as {person}."
PLACEHOLDERS = ("tags", "name", "folder", "trigger")
