# What type checkers see of keel/__init__.py, whose names are loaded when they are asked for.
from keel.annotate.base import Annotator as Annotator
from keel.annotate.base import Judgement as Judgement
from keel.annotate.base import Pair as Pair
from keel.config.collect import AnnotatorConfig as AnnotatorConfig
from keel.config.collect import CollectConfig as CollectConfig
from keel.config.data import DataConfig as DataConfig
from keel.config.evaluate import EvaluateConfig as EvaluateConfig
from keel.config.kl import KLConfig as KLConfig
from keel.config.model import LoRAConfig as LoRAConfig
from keel.config.model import ModelConfig as ModelConfig
from keel.config.model import ScratchConfig as ScratchConfig
from keel.config.ppo import AdvantageConfig as AdvantageConfig
from keel.config.ppo import HeldOutConfig as HeldOutConfig
from keel.config.ppo import PPOConfig as PPOConfig
from keel.config.ppo import UpdateConfig as UpdateConfig
from keel.config.recipe import Recipe as Recipe
from keel.config.recipe import load_recipe as load_recipe
from keel.config.reward import RewardConfig as RewardConfig
from keel.config.rewards import RewardSource as RewardSource
from keel.config.sampling import RLSamplingConfig as RLSamplingConfig
from keel.config.sampling import SamplingConfig as SamplingConfig
from keel.config.sft import SFTConfig as SFTConfig
from keel.config.shaping import ShapingConfig as ShapingConfig
from keel.errors import UserError as UserError
from keel.library import StageResult as StageResult
from keel.library import collect as collect
from keel.library import evaluate as evaluate
from keel.library import ppo as ppo
from keel.library import run as run
from keel.library import sft as sft
from keel.library import train_reward as train_reward
from keel.references import reference_to as reference_to
from keel.runs.callbacks import Callback as Callback
from keel.runs.callbacks import StageInfo as StageInfo

__version__: str
