"""What a run becomes: the trainer's configuration, and the manifests of its stages and preparations."""

from skywork_operator.render.config import preparation as preparation
from skywork_operator.render.config import prepared_by_name as prepared_by_name
from skywork_operator.render.config import run_config as run_config
from skywork_operator.render.gang import gangs_of as gangs_of
from skywork_operator.render.gang import wants_gang as wants_gang
from skywork_operator.render.merging import merge as merge
from skywork_operator.render.pods import MANAGED_LABEL as MANAGED_LABEL
from skywork_operator.render.pods import MANAGER as MANAGER
from skywork_operator.render.pods import PHASE_LABEL as PHASE_LABEL
from skywork_operator.render.pods import PLACEMENT_GATE as PLACEMENT_GATE
from skywork_operator.render.pods import PREPARE_LABEL as PREPARE_LABEL
from skywork_operator.render.pods import RUN_LABEL as RUN_LABEL
from skywork_operator.render.pods import STAGE_LABEL as STAGE_LABEL
from skywork_operator.render.pods import TRACKING_FINALIZER as TRACKING_FINALIZER
from skywork_operator.render.pods import Defaults as Defaults
from skywork_operator.render.prepare import Reading as Reading
from skywork_operator.render.prepare import config_name as config_name
from skywork_operator.render.prepare import job_name as job_name
from skywork_operator.render.prepare import prepare_config_map as prepare_config_map
from skywork_operator.render.prepare import prepare_job as prepare_job
from skywork_operator.render.stage import object_name as object_name
from skywork_operator.render.stage import stage_objects as stage_objects
