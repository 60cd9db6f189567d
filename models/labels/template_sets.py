"""Named prompt templates by domain; data only, no code that uses it.

The English sets are those of CLIP's own evaluations (openai/CLIP, data/prompts.md and
notebooks/Prompt_Engineering_for_ImageNet.ipynb), named by what is in the picture instead of by
dataset. The Chinese sets are their counterparts, worded as Chinese captions are.
"""

from __future__ import annotations

_DEFAULT = (
    "a photo of a {c}.",
    "a photo of the {c}.",
    "a picture of {c}.",
    "a close-up photo of a {c}.",
    "{c}",
)
"""Plain captions that suit any collection of photographs and any text tower."""

_IMAGENET_7 = (
    "itap of a {c}.",
    "a bad photo of the {c}.",
    "a origami {c}.",
    "a photo of the large {c}.",
    "a {c} in a video game.",
    "art of the {c}.",
    "a photo of the small {c}.",
)
"""What CLIP's authors picked from the eighty by sequential forward selection on ImageNet
(openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb)."""

_IMAGENET = (
    "a bad photo of a {c}.",
    "a photo of many {c}.",
    "a sculpture of a {c}.",
    "a photo of the hard to see {c}.",
    "a low resolution photo of the {c}.",
    "a rendering of a {c}.",
    "graffiti of a {c}.",
    "a bad photo of the {c}.",
    "a cropped photo of the {c}.",
    "a tattoo of a {c}.",
    "the embroidered {c}.",
    "a photo of a hard to see {c}.",
    "a bright photo of a {c}.",
    "a photo of a clean {c}.",
    "a photo of a dirty {c}.",
    "a dark photo of the {c}.",
    "a drawing of a {c}.",
    "a photo of my {c}.",
    "the plastic {c}.",
    "a photo of the cool {c}.",
    "a close-up photo of a {c}.",
    "a black and white photo of the {c}.",
    "a painting of the {c}.",
    "a painting of a {c}.",
    "a pixelated photo of the {c}.",
    "a sculpture of the {c}.",
    "a bright photo of the {c}.",
    "a cropped photo of a {c}.",
    "a plastic {c}.",
    "a photo of the dirty {c}.",
    "a jpeg corrupted photo of a {c}.",
    "a blurry photo of the {c}.",
    "a photo of the {c}.",
    "a good photo of the {c}.",
    "a rendering of the {c}.",
    "a {c} in a video game.",
    "a photo of one {c}.",
    "a doodle of a {c}.",
    "a close-up photo of the {c}.",
    "a photo of a {c}.",
    "the origami {c}.",
    "the {c} in a video game.",
    "a sketch of a {c}.",
    "a doodle of the {c}.",
    "a origami {c}.",
    "a low resolution photo of a {c}.",
    "the toy {c}.",
    "a rendition of the {c}.",
    "a photo of the clean {c}.",
    "a photo of a large {c}.",
    "a rendition of a {c}.",
    "a photo of a nice {c}.",
    "a photo of a weird {c}.",
    "a blurry photo of a {c}.",
    "a cartoon {c}.",
    "art of a {c}.",
    "a sketch of the {c}.",
    "a embroidered {c}.",
    "a pixelated photo of a {c}.",
    "itap of the {c}.",
    "a jpeg corrupted photo of the {c}.",
    "a good photo of a {c}.",
    "a plushie {c}.",
    "a photo of the nice {c}.",
    "a photo of the small {c}.",
    "a photo of the weird {c}.",
    "the cartoon {c}.",
    "art of the {c}.",
    "a drawing of the {c}.",
    "a photo of the large {c}.",
    "a black and white photo of a {c}.",
    "the plushie {c}.",
    "a dark photo of a {c}.",
    "itap of a {c}.",
    "graffiti of the {c}.",
    "a toy {c}.",
    "itap of my {c}.",
    "a photo of a cool {c}.",
    "a photo of a small {c}.",
    "a tattoo of the {c}.",
)
"""The eighty of CLIP's ImageNet evaluation, in its order."""

_CHINESE = (
    "一张{c}的照片。",
    "一张{c}的图片。",
    "{c}的照片。",
    "一张好看的{c}照片。",
    "一张{c}的特写照片。",
    "照片里有{c}。",
    "图中是{c}。",
)

_GENERAL = tuple(
    template.replace("{a}", article)
    for article in ("a", "the")
    for template in (
        "a photo of {a} {c}.",
        "a blurry photo of {a} {c}.",
        "a black and white photo of {a} {c}.",
        "a low contrast photo of {a} {c}.",
        "a high contrast photo of {a} {c}.",
        "a bad photo of {a} {c}.",
        "a good photo of {a} {c}.",
        "a photo of {a} small {c}.",
        "a photo of {a} big {c}.",
    )
)
"""CLIP's CIFAR set."""

_TEXTURES = tuple(
    f"a photo of {article} {{c}} {noun}."
    for article in ("a", "the")
    for noun in ("texture", "pattern", "thing", "object")
)
"""CLIP's Describable Textures set."""

_SATELLITE = tuple(
    f"{view} of {article}{{c}}."
    for article in ("", "a ", "the ")
    for view in (
        "satellite imagery",
        "aerial imagery",
        "satellite photo",
        "aerial photo",
        "satellite view",
        "aerial view",
    )
)
"""CLIP's RESISC45 set."""

_CARS = (
    "a photo of a {c}.",
    "a photo of the {c}.",
    "a photo of my {c}.",
    "i love my {c}!",
    "a photo of my dirty {c}.",
    "a photo of my clean {c}.",
    "a photo of my new {c}.",
    "a photo of my old {c}.",
)

_ACTIONS = tuple(
    f"a {record} of {article} person {verb}{{c}}."
    for verb in ("", "using ", "doing ", "during ", "performing ", "practicing ")
    for article in ("a", "the")
    for record in ("photo", "video", "example", "demonstration")
)
"""CLIP's UCF101 set, "a example" and all."""

_PLACES = (
    "a photo i took in {c}.",
    "a photo i took while visiting {c}.",
    "a photo from my home country of {c}.",
    "a photo from my visit to {c}.",
    "a photo showing the country of {c}.",
)

_EMOTIONS = (
    "a photo of a {c} looking face.",
    "a photo of a face showing the emotion: {c}.",
    "a photo of a face looking {c}.",
    "a face that looks {c}.",
    "they look {c}.",
    "look at how {c} they are.",
)

_SIGNS = (
    'a zoomed in photo of a "{c}" traffic sign.',
    'a centered photo of a "{c}" traffic sign.',
    'a close up photo of a "{c}" traffic sign.',
)

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "default": _DEFAULT,
    "plain": ("{c}",),
    "imagenet": _IMAGENET,
    "imagenet7": _IMAGENET_7,
    "general": _GENERAL,
    "food": ("a photo of {c}, a type of food.",),
    "pets": ("a photo of a {c}, a type of pet.",),
    "birds": ("a photo of a {c}, a type of bird.",),
    "flowers": ("a photo of a {c}, a type of flower.",),
    "aircraft": (
        "a photo of a {c}, a type of aircraft.",
        "a photo of the {c}, a type of aircraft.",
    ),
    "cars": _CARS,
    "textures": _TEXTURES,
    "scenes": ("a photo of a {c}.", "a photo of the {c}."),
    "satellite": _SATELLITE,
    "actions": _ACTIONS,
    "countries": _PLACES,
    "emotions": _EMOTIONS,
    "traffic-signs": _SIGNS,
    "zh": _CHINESE,
    "zh-food": ("一张{c}的照片，一种食物。", "一份{c}。", "{c}，美食照片。"),
    "zh-pets": ("一张{c}的照片，一种宠物。", "一只{c}。", "一只可爱的{c}的照片。"),
    "zh-birds": ("一张{c}的照片，一种鸟。", "一只{c}。"),
    "zh-flowers": ("一张{c}的照片，一种花。", "一朵{c}。", "盛开的{c}。"),
    "zh-aircraft": ("一张{c}的照片，一种飞机。", "一架{c}飞机。"),
    "zh-cars": ("一张{c}的照片，一种汽车。", "一辆{c}。", "我的{c}汽车。"),
    "zh-textures": ("一张{c}纹理的照片。", "一张{c}图案的照片。", "{c}的质感。"),
    "zh-scenes": ("一张{c}的照片。", "{c}的风景。", "在{c}拍的照片。"),
    "zh-satellite": ("{c}的卫星照片。", "{c}的航拍照片。", "从空中俯瞰的{c}。"),
    "zh-actions": ("一张有人在{c}的照片。", "一个人正在{c}。", "人们在{c}。"),
    "zh-emotions": ("一张{c}的脸的照片。", "一个看起来{c}的人。", "他们看起来很{c}。"),
}
"""Named sets; `{c}` stands for the label, as in CLIP_benchmark."""
