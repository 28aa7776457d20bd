"""What a capable model might write: seeds in German, and German tasks in answers."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from modelscope_polylm.self_instruct.tasks import Task, numbered

SEEDS = {
    "Name a fruit.": Task("Nenne ein Obst.", "", "Apfel"),
    "Add the numbers.": Task("Zähle die Zahlen zusammen.", "2, 3", "5"),
    "What is dew?": Task("Was ist Tau?", "", "Wasser, das nachts auf kühlen Flächen kondensiert."),
    "Write a function that returns 1.": Task("Schreibe eine Funktion, die 1 zurückgibt.", "", "def eins(): ..."),
}
"""Translations by English instruction."""
KEPT_OUTPUT = "def one(): return 1"
INSTRUCTIONS = """\
Beschreibe den Geschmack einer reifen Birne.
Wie lange brütet ein Storch?
Ordne die Städte nach ihrer Einwohnerzahl.
Erkläre einem Kind, warum der Himmel blau ist.
Schlage einen Titel für ein Kochbuch über Suppen vor.
Wandle den Satz in die Vergangenheit um.
Welche Sprache spricht man in Brasilien?
Formuliere eine höfliche Absage für eine Einladung zum Abendessen.
Finde den Rechtschreibfehler in diesem Absatz.
Berechne den Flächeninhalt des Rechtecks.
Gib drei Tipps gegen Lampenfieber vor einem Vortrag.
Vergleiche Fahrrad und Auto als Verkehrsmittel in der Innenstadt.
Reime etwas auf das Wort Mond.
Warum schwimmt Eis auf dem Wasser?
Fasse die Nachricht in einem Satz zusammen.
Entwirf einen Trainingsplan für Anfänger im Laufen.
Ist die folgende Aussage eine Meinung oder eine Tatsache?
Erfinde einen Werbespruch für regenfeste Schuhe.
Nenne zwei Gegenteile von mutig.
Übersetze die Überschrift ins Englische.
Was feiert man am ersten Mai?
Schreibe eine Postkarte aus dem Urlaub an deine Großmutter.
Erstelle eine Einkaufsliste für einen Kartoffelsalat.
Warum gähnen Menschen, wenn andere gähnen?
Setze die fehlenden Kommas ein.
Stelle dir ein Gespräch zwischen Sonne und Wind vor.
Bewerte das Restaurant anhand der Kommentare.
Wie funktioniert ein Kompass?
Ergänze die Zahlenfolge um drei weitere Glieder.
Bestimme die Wortarten in dem gegebenen Satz.
""".splitlines()


def tasks_for(prompt: str) -> list[Task]:
    """Five tasks, always the same for the same prompt."""
    chosen = random.Random(prompt).sample(INSTRUCTIONS, 5)
    return [Task(text, "", f"Antwort auf: {text}") for text in chosen]


def translated(prompt: str) -> Task | None:
    """The translation that a prompt asks for."""
    found = re.search(r"^1\. Instruction: (.*)$", prompt, re.MULTILINE)
    return SEEDS[found[1]] if found and prompt.startswith("Translate this task") else None


def good_answer(prompt: str, number: int = 0) -> str:
    """A translation or five tasks, from 4 on."""
    seed = translated(prompt)
    tasks = [seed] if seed else tasks_for(prompt)
    return "\n\n".join(numbered(task, place) for place, task in enumerate(tasks, start=1 if seed else 4))


def write_seeds(path: Path) -> Path:
    """The seeds in English; the last keeps its output in every language."""
    rows = [{"instruction": instruction, "input": "", "output": "…"} for instruction in SEEDS]
    rows[-1] |= {"output": KEPT_OUTPUT, "keep": ["output"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
