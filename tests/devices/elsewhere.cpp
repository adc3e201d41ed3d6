// A device that is none, for machines without a GPU: its tensors say that they lie on "elsewhere:0", and every operation on
// them is computed on the CPU, on the same memory. As on a GPU, tensors of two devices do not meet, generators have a device
// and numbers of their own, and whoever reads a number waits: these reads are told to a Python function.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <set>

namespace {

using namespace at;
using c10::DataPtr;
using c10::IValue;
using c10::Storage;

const Device FAR(DeviceType::PrivateUse1, 0);
char default_event;
PyObject* told = nullptr;  // never freed: it may outlive the interpreter

void tell(const std::string& operation) {
  pybind11::gil_scoped_acquire held;
  if (told) pybind11::reinterpret_borrow<pybind11::function>(told)(operation);
}

// The device: one, with one stream on which everything has always happened --------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::PrivateUse1; }
  Device exchangeDevice(Device) const override { return FAR; }
  Device getDevice() const override { return FAR; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream getNewStream(Device device, int) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream stream) const override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const Stream&, DeviceIndex, EventFlag) const override { *event = &default_event; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// The same memory under another device's name; `kept` lives as long.
template <class Kept>
DataPtr renamed(void* memory, Kept kept, Device device) {
  return DataPtr(memory, new Kept(std::move(kept)), [](void* kept) { delete static_cast<Kept*>(kept); }, device);
}

struct Memory final : c10::Allocator {
  DataPtr allocate(size_t bytes) override {
    auto own = c10::GetDefaultCPUAllocator()->allocate(bytes);
    return renamed(own.get(), std::move(own), FAR);
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &memory)

struct FarGenerator final : c10::GeneratorImpl {  // other numbers than the CPU's from the same seed
  explicit FarGenerator(uint64_t seed) : GeneratorImpl(FAR, DispatchKeySet(DispatchKey::PrivateUse1)) { set_current_seed(seed); }
  void set_current_seed(uint64_t seed) override { given = seed, inner.set_current_seed(~seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return given; }
  uint64_t seed() override { return set_current_seed(c10::detail::getNonDeterministicRandom()), given; }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  FarGenerator* clone_impl() const override {
    auto* copy = new FarGenerator(given);
    copy->inner = inner.clone();
    return copy;
  }
  uint64_t given = 0;
  Generator inner = at::detail::createCPUGenerator();
};

Generator& default_generator() {
  static Generator one = make_generator<FarGenerator>(0);
  return one;
}

struct Hooks final : PrivateUse1HooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<FarGenerator>(0); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    auto larger = memory.allocate(bytes);
    std::memcpy(larger.mutable_get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(larger));
    storage.set_nbytes(bytes);
  }
};

// Operations: arguments as the CPU's on the same memory, results back --------------------------------------------------------

Tensor made(Storage storage, const Tensor& like, DispatchKey key) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

Storage moved(const Storage& storage, Device device) {
  auto data = renamed(storage.mutable_data(), storage, device);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetDefaultCPUAllocator(), true);
}

struct Passage {
  struct Pair {
    Tensor far, near;
  };
  std::vector<Pair> seen;

  Tensor down(const Tensor& tensor) {
    if (!tensor.defined() || tensor.device() != FAR) return tensor;
    Storage storage;
    for (auto& [far, near] : seen) {
      if (far.is_same(tensor)) return near;
      if (far.storage().is_alias_of(tensor.storage())) storage = near.storage();
    }
    auto near = made(storage ? storage : moved(tensor.storage(), kCPU), tensor, DispatchKey::CPU);
    seen.push_back({tensor, near});
    return near;
  }

  Tensor up(const Tensor& tensor) {
    if (!tensor.defined() || tensor.device() == FAR) return tensor;
    for (auto& [far, near] : seen) {
      if (near.is_same(tensor)) return far;
    }
    for (auto& [far, near] : seen) {  // a view of an argument
      if (near.storage().unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl())
        return made(far.storage(), tensor, DispatchKey::PrivateUse1);
    }
    return made(moved(tensor.storage(), FAR), tensor, DispatchKey::PrivateUse1);
  }

  void settle() {  // arguments that were resized
    for (auto& [far, near] : seen) {
      if (far.sizes() == near.sizes() && far.strides() == near.strides()) continue;
      if (far.storage().nbytes() != near.storage().nbytes())
        far.unsafeGetTensorImpl()->set_storage_keep_dtype(moved(near.storage(), FAR));
      far.unsafeGetTensorImpl()->set_sizes_and_strides(near.sizes(), near.strides(), near.storage_offset());
    }
  }
};

const std::set<std::string> READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero",
    "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave.Tensor"};
const std::set<std::string> MIXED = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"};  // by the CPU's indices

void on_one_device(const Tensor& tensor, const std::string& name) {
  TORCH_CHECK(!tensor.defined() || tensor.dim() == 0 || tensor.device() == FAR || MIXED.count(name),
      "Expected all tensors to be on the same device, but found elsewhere:0 and ", tensor.device(), " (", name, ")");
}

IValue brought(const IValue& value, const c10::Argument& argument, Passage& passage, const std::string& name, bool far) {
  if (value.isTensor()) {
    if (far) on_one_device(value.toTensor(), name);
    return passage.down(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<Tensor> all;
    for (const Tensor& tensor : value.toTensorVector()) {
      if (far) on_one_device(tensor, name);
      all.push_back(passage.down(tensor));
    }
    return all;
  }
  if (value.isOptionalTensorList()) {  // indices
    c10::List<std::optional<Tensor>> all;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorList().vec()) {
      if (tensor && tensor->defined() && tensor->scalar_type() == kBool) tell(name + " by a mask");
      all.push_back(tensor ? std::optional<Tensor>(passage.down(*tensor)) : tensor);
    }
    return all;
  }
  if (argument.name() == "device") return IValue(Device(kCPU));
  if (argument.name() == "generator") {
    auto generator = value.isNone() ? default_generator() : value.toGenerator();
    TORCH_CHECK(generator.device() == FAR, "Expected an 'elsewhere' device type for generator but found ", generator.device());
    return IValue(static_cast<FarGenerator*>(generator.unsafeGetGeneratorImpl())->inner);
  }
  return value;
}

struct Computing {  // neither recorded by autograd nor of inference mode, as a kernel's own tensors are
  c10::InferenceMode normal{false};
  at::AutoDispatchBelowADInplaceOrView below;
};

void any_operation(const c10::OperatorHandle& operation, DispatchKeySet, torch::jit::Stack* stack) {
  auto& schema = operation.schema();
  auto name = toString(operation.operator_name());
  auto arguments = torch::jit::last(*stack, schema.arguments().size());
  bool far = std::any_of(arguments.begin(), arguments.end(),
      [](const IValue& value) { return value.isTensor() && value.toTensor().defined() && value.toTensor().device() == FAR; });
  if (READS.count(name)) tell(name);
  Passage passage;
  size_t first = stack->size() - arguments.size();
  for (size_t i = 0; i < schema.arguments().size(); i++)
    (*stack)[first + i] = brought((*stack)[first + i], schema.arguments()[i], passage, name, far);
  {
    Computing computing;
    operation.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    passage.settle();
    for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
      IValue& value = (*stack)[i];
      if (value.isTensor()) {
        value = passage.up(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<Tensor> all;
        for (const Tensor& tensor : value.toTensorVector()) all.push_back(passage.up(tensor));
        value = all;
      }
    }
  }
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (from.device() != to.device() && !non_blocking) tell("a copy from one device to another");
  Passage passage;
  passage.down(to).copy_(passage.down(from));
  return to;
}

Tensor& set_storage(Tensor& self, Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_whole_storage(Tensor& self, Storage storage) {
  int64_t numbers = storage.nbytes() / self.element_size();
  return set_storage(self, std::move(storage), 0, {numbers}, {1});
}

Tensor convolved(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  Computing computing;
  Passage passage;
  for (const Tensor& tensor : {x, w}) on_one_device(tensor, "aten::convolution");
  auto b = bias && bias->defined() ? std::optional<Tensor>(passage.down(*bias)) : bias;
  return passage.up(at::convolution(
      passage.down(x), passage.down(w), b, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolved_back(const Tensor& delta, const Tensor& x, const Tensor& w, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> wanted) {
  Computing computing;
  Passage passage;
  std::vector<int64_t> biases = {delta.size(1)};
  auto [dx, dw, db] = at::convolution_backward(passage.down(delta), passage.down(x), passage.down(w), IntArrayRef(biases),
      stride, padding, dilation, transposed, output_padding, groups, wanted);
  return {passage.up(dx), passage.up(dw), passage.up(db)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_operation>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_copy_from", copy_from);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("convolution_overrideable", convolved);
  m.impl("convolution_backward_overrideable", convolved_back);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("begin", [](pybind11::function reads) {
    told = reads.release().ptr();
    RegisterPrivateUse1HooksInterface(new Hooks());
  });
  m.def("default_generator", [] { return default_generator(); });
}
