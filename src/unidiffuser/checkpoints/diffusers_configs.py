"""The JSON files of a diffusers folder, from ours. Names and values are theirs."""

from collections.abc import Mapping
from typing import Any

from unidiffuser.modalities.stable_diffusion import CLIP_MEAN, CLIP_STD
from unidiffuser.networks.uvit import UViTConfig

# Its own files name the library "unidiffuser" for two of the parts, which diffusers finds no longer, or finds us.
MODEL_INDEX = {
    "_class_name": "UniDiffuserPipeline",
    "_diffusers_version": "0.33.1",
    "clip_image_processor": ["transformers", "CLIPImageProcessor"],
    "clip_tokenizer": ["transformers", "CLIPTokenizer"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_decoder": ["diffusers", "UniDiffuserTextDecoder"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_tokenizer": ["transformers", "GPT2Tokenizer"],
    "unet": ["diffusers", "UniDiffuserModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "_diffusers_version": "0.33.1",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "solver_order": 3,
    "algorithm_type": "dpmsolver++",
    "prediction_type": "epsilon",
}


def unet(network: UViTConfig) -> dict[str, Any]:
    """Of the network."""
    (length, text), (channels, size, _) = network.streams["text"], network.streams["image.latent"]
    return {
        "_class_name": "UniDiffuserModel",
        "text_dim": text,
        "clip_img_dim": network.streams["image.clip"][1],
        "num_text_tokens": length,
        "num_attention_heads": network.heads,
        "attention_head_dim": network.dim // network.heads,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": network.depth,
        "sample_size": size,
        "patch_size": network.patch,
        "activation_fn": "gelu",
        "norm_type": "layer_norm",
        "block_type": "unidiffuser",
        "attention_bias": False,
        "pre_layer_norm": False,
        "norm_elementwise_affine": True,
        "use_timestep_embedding": False,
        "use_data_type_embedding": network.labels > 0,
        "ff_final_dropout": True,
    }


def vae(pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Of the autoencoder."""
    settings = pictures["autoencoder"]
    levels = len(settings["block_out_channels"])
    return {
        "_class_name": "AutoencoderKL",
        **settings,
        "act_fn": "silu",
        "sample_size": pictures["height"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def clip(tower: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of CLIP's "text" or "vision" encoder."""
    owner = {"text": "CLIPTextModel", "vision": "CLIPVisionModelWithProjection"}[tower]
    return {"architectures": [owner], "model_type": f"clip_{tower}_model", **settings}


def decoder(sentences: Mapping[str, Any]) -> dict[str, Any]:
    """Of the caption decoder."""
    return {
        "_class_name": "UniDiffuserTextDecoder",
        **sentences["decoder"],
        "prefix_length": sentences["length"],
        "prefix_inner_dim": sentences["decoder"]["n_embd"],
        "prefix_hidden_dim": sentences["width"],
    }


def processor(pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Of CLIP's view of a picture."""
    side = pictures["vision"]["image_size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }


def tokenizer(owner: str, saved: Mapping[str, Any], special: Mapping[str, int], length: int) -> dict[str, Any]:
    """Of a tokenizer: its class, its special tokens by their numbers, and the most tokens that its model takes."""
    by_number = {number: token for token, number in saved["model"]["vocab"].items()}
    by_number |= {added["id"]: added["content"] for added in saved.get("added_tokens", [])}
    return {
        "tokenizer_class": owner,
        "model_max_length": length,
        **{name: by_number[number] for name, number in special.items()},
    }
