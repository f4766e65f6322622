# cmake --install of headers, the static library and find_package(octavo) for C++ programs. The CPU engine only.
if(octavo_cuda_wanted)
  message(FATAL_ERROR "OCTAVO_INSTALL_CPP installs the CPU engine: configure with -DOCTAVO_CUDA=OFF")
endif()
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

file(STRINGS ${PROJECT_SOURCE_DIR}/pyproject.toml octavo_version REGEX "^version = " LIMIT_COUNT 1)
string(REGEX REPLACE "^version = \"(.*)\"$" "\\1" octavo_version "${octavo_version}")

set(octavo_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/octavo)
set_target_properties(octavo_engine PROPERTIES EXPORT_NAME engine)
target_compile_features(octavo_engine PUBLIC cxx_std_20)
install(TARGETS octavo_engine EXPORT octavo ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY cpp/include/octavo DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT octavo NAMESPACE octavo:: FILE octavoConfig.cmake DESTINATION ${octavo_package_dir})
write_basic_package_version_file(octavoConfigVersion.cmake VERSION ${octavo_version} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/octavoConfigVersion.cmake DESTINATION ${octavo_package_dir})
