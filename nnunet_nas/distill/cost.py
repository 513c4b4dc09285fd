"""What a distillation costs: the student's training steps, and a forward pass of each teacher beside every one."""

from __future__ import annotations

from nnunet_nas.architecture import NetworkSpec, build_without_weights, network_spec
from nnunet_nas.complexity import count_macs, training_shape
from nnunet_nas.distill.settings import DistillSettings
from nnunet_nas.distill.teacher import TeacherAddress
from nnunet_nas.plans import Plans
from nnunet_nas.search_cost import Phase, plain_phases


def phases(spec: NetworkSpec, settings: DistillSettings, teacher: NetworkSpec | None = None) -> list[Phase]:
    """Training for as long as the settings say; without a teacher where its weight is 0.

    Args:
        spec: of the student.
        settings: of the distillation.
        teacher: see `teacher`.
    """
    (plain,) = plain_phases(spec, settings)
    if teacher is None:
        return [plain]
    # It sees the student's patches, and answers at all resolutions.
    network = build_without_weights(teacher, deep_supervision=True)
    each = spec.batch_size * count_macs(network, training_shape(spec))
    return [Phase(plain.iterations, plain.macs + len(settings.teacher_folds or (None,)) * each)]


def teacher(plans: Plans, name: str, settings: DistillSettings) -> NetworkSpec | None:
    """The network that teaches a configuration, trained or not; None where the settings give it no weight.

    Raises:
        DataProblem: none is named, or it sees other data.
    """
    if settings.weight == 0:
        return None
    address = TeacherAddress(
        plans,
        name,
        settings.teacher_configuration,
        settings.teacher_folds or (0,),
        settings.teacher_trainer,
        settings.teacher_checkpoint,
    )
    return network_spec(plans, address.resolved())
