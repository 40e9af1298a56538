"""Package `domain_embed` with the stage notebooks, profiles and prompts inside; names and versions stand in settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author=settings["author"],
    keywords=settings["keywords"].split(),
    python_requires=f">={settings['min_python']}",
    packages=["domain_embed", "domain_embed.nbs", "domain_embed.profiles", "domain_embed.prompts", "domain_embed.templates", "domain_embed.examples"],
    package_dir={"domain_embed": "domain_embed", "domain_embed.nbs": "nbs", "domain_embed.profiles": "profiles", "domain_embed.prompts": "prompts", "domain_embed.templates": "templates", "domain_embed.examples": "examples"},
    package_data={"domain_embed.nbs": ["*.ipynb", "*.jsonl", "images/*"], "domain_embed.profiles": ["*.yaml"], "domain_embed.prompts": ["*.yaml"], "domain_embed.templates": ["*.j2", "*.yaml", "*.html", "Dockerfile"], "domain_embed.examples": ["python/**/*"]},
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in ("embedded", "documents", "lab", "index", "scale", "gpu", "dev")},
    entry_points={"console_scripts": ["domain-embed=domain_embed.pipeline:main"]},
)
